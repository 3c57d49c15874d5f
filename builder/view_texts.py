"""The page's own sentences, in English and, for a Chinese or Cantonese transcript, in Chinese.

Each text is used by the name that stands in view.html or in view_page.py.
"""

TEXTS = {
    "en": {
        "legend_label": "Legend",
        "player_label": "Player",
        "position_label": "Position in the recording",
        "transcript_label": "Transcript",
        "play": "▶ Play",
        "pause": "⏸ Pause",
        "speed": "speed",
        "follow": "follow",
        "search": "Search",
        "copy": "Copy text",
        "copied": "Copied",
        "subtitles": "Subtitles:",
        "keys_playing": (
            "Space plays and pauses, ← and → go from word to word, ↑ and ↓ from sentence to "
            "sentence; a click on a word plays from there."
        ),
        "keys_silent": "← and → go from word to word, ↑ and ↓ from sentence to sentence.",
        "cannot_play": (
            "This browser cannot play the recording, or it is not where the page expects it."
        ),
        "cannot_copy": "This browser does not let the page copy. Select the text and copy it.",
        "all_estimated": "All times are estimated, not measured.",
        "nothing_heard": "nothing heard",
        "segments": "{count} segments",
        "channel": "channel {number}",
        "note": "to {end}: {what} ({why})",
        "no_reason": "no reason given",
        "heard": "speech",
        "doubtful": "the model is unsure of the word",
        "estimated": "time estimated, not measured",
        "mended": "recognised again, better answer",
        "kept": "recognised again, still doubtful",
        "failed": "not transcribed",
    },
    "zh-CN": {
        "legend_label": "图例",
        "player_label": "播放器",
        "position_label": "录音中的位置",
        "transcript_label": "转写文本",
        "play": "▶ 播放",
        "pause": "⏸ 暂停",
        "speed": "倍速",
        "follow": "跟随",
        "search": "搜索",
        "copy": "复制全文",
        "copied": "已复制",
        "subtitles": "字幕：",
        "keys_playing": (
            "空格键播放或暂停，← → 逐词移动，↑ ↓ 逐句移动；点击某个词，从该词开始播放。"
        ),
        "keys_silent": "← → 逐词移动，↑ ↓ 逐句移动。",
        "cannot_play": "浏览器无法播放这段录音，或者录音文件已不在原来的位置。",
        "cannot_copy": "浏览器不允许页面复制，请手动选中文本后复制。",
        "all_estimated": "所有时间都是估算的，不是测得的。",
        "nothing_heard": "没有听到语音",
        "segments": "{count} 个片段",
        "channel": "声道 {number}",
        "note": "到 {end}：{what}（{why}）",
        "no_reason": "未说明原因",
        "heard": "语音",
        "doubtful": "模型对这个词没有把握",
        "estimated": "时间是估算的，不是测得的",
        "mended": "重新识别过，结果更好",
        "kept": "重新识别过，仍有疑问",
        "failed": "未能转写",
    },
}
# A Chinese page names its language in Chinese.
LANGUAGE_NAMES = {"Chinese": "中文", "Cantonese": "粤语"}


def interface_language(main_language: object) -> str:
    """The key of TEXTS for a transcript that is mostly in this language of Qwen3-ASR."""
    return "zh-CN" if main_language in LANGUAGE_NAMES else "en"
