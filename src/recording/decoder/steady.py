"""Packets → frames by a decoder that damage does not change for good."""

import av

MAX_ODD_PACKETS = 5  # in a row; then the channels of the recording have changed


class SteadyDecoder:
    """Decodes the packets of one AAC track.

    A damaged AAC packet may change the channels that its decoder expects in all later packets.
    Where they change, a new decoder tells whether the packet has them.
    """

    def __init__(self, stream: av.AudioStream):
        self._stream = stream
        self._decoder: av.AudioCodecContext | None = None  # instead of the stream's own
        self._channels = 0
        self._odd_packets = 0

    def frames_of(self, packet: av.Packet) -> list[av.AudioFrame]:
        """Raises FFmpegError for a damaged packet."""
        frames: list[av.AudioFrame] = (
            packet.decode() if self._decoder is None else self._decoder.decode(packet)
        )
        if not frames:
            return frames
        channels = frames[0].layout.nb_channels
        if self._channels in (0, channels):
            self._channels, self._odd_packets = channels, 0
            return frames
        return self._anew(packet) or self._accepted(frames)

    def _anew(self, packet: av.Packet) -> list[av.AudioFrame]:
        """The frames by a new decoder, which is kept if they have the usual channels; or none."""
        decoder = av.CodecContext.create("aac", "r")
        decoder.extradata = self._stream.codec_context.extradata
        decoder.thread_count = 1
        try:
            frames: list[av.AudioFrame] = decoder.decode(packet)
        except av.error.FFmpegError:
            return []
        if not frames or frames[0].layout.nb_channels != self._channels:
            return []
        self._decoder = decoder
        return frames

    def _accepted(self, frames: list[av.AudioFrame]) -> list[av.AudioFrame]:
        self._odd_packets += 1
        if self._odd_packets > MAX_ODD_PACKETS:
            self._channels = frames[0].layout.nb_channels
        return frames
