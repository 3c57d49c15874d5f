"""The release: shown in a result's usage, the tag of the image, and the head of the changelog."""

VERSION = "1.0.0"
