"""Settings → both models, loaded and checked. Knows no jobs."""

import gc
import os
import resource
from pathlib import Path

from contract.errors import RecognitionError
from contract.settings import Settings
from recording.pcm_stream import decode
from recording.vad import CutRules, split_at_pauses
from runpod import RunPodLogger
from speech.models.aligner import Aligner
from speech.models.caches import cache_environment
from speech.models.device import find_device
from speech.models.engine_args import EngineOptions, plan
from speech.models.recogniser import Recogniser
from speech.models.weights import find

CHECK_RECORDING = Path(__file__).parent / "fitness_check.flac"  # one second of English speech
CHECK_TEXT = "November xray"  # what is said in it
CHECK_SECONDS = 10.0  # the recording is shorter than this limit, so it becomes one chunk

log = RunPodLogger()


def raise_limit_of_open_files() -> None:
    """Raise it to what the system allows. A job holds about ten, and the usual limit is 1024."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))


def start_models(settings: Settings) -> tuple[Recogniser, Aligner]:
    """Load both models at the same time.

    While the engine's process starts, this process loads the aligner. Raises WeightsError where a
    model is not available, SettingsError where there is no GPU for the models, they do not fit it,
    or the user cannot write to the cache.
    """
    os.environ |= cache_environment(os.environ)  # before find_device, which imports vLLM
    # A million objects are created here and stay: the collector would scan them again and again,
    # for seconds.
    gc.disable()
    card = find_device(settings.device)
    if settings.device == "auto" and card is None:
        log.info("no GPU that this vLLM can use: the models run on the CPU, slowly")
    model = _checkpoint("recogniser", settings.model_name, settings.model_revision)
    aligner_model = _checkpoint("aligner", settings.aligner_name, settings.aligner_revision)
    options = plan(settings, model, aligner_model, card)
    log.info(f"starting the recogniser {settings.model_name}")
    asr = Recogniser(options)
    try:
        aligner = _aligner_beside(asr, settings, aligner_model, options)
    except BaseException:
        asr.kill()  # the interpreter does not end before the engine's process has ended
        raise
    gc.freeze()  # every later collection would stop all jobs for half a second
    gc.enable()
    return asr, aligner


def _aligner_beside(
    asr: Recogniser, settings: Settings, model: str, options: EngineOptions
) -> Aligner:
    """Load the aligner while the engine starts; move it to the GPU when the engine is ready."""
    log.info(f"loading the aligner {settings.aligner_name}")
    aligner = Aligner(
        model,
        options.device,
        options.dtype,
        settings.aligner_batch_seconds,
        settings.chunk_limit_seconds,
        options.aligner_share,
    )
    gc.collect()
    log.info("waiting for the recogniser")
    asr.wait_until_ready()
    aligner.start()
    return aligner


def _checkpoint(role: str, name: str, revision: str) -> str:
    """The local folder of a model. Raises WeightsError."""
    weights = find(role, name, revision, log.info)
    log.info(f"{role} {name}, {weights}")
    return str(weights.folder)


async def check_models(asr: Recogniser, aligner: Aligner, vad_mode: int) -> None:
    """Run one second of speech through the decoder, the splitter and both models.

    Raises where one of them does not work.
    """
    rules = CutRules(CHECK_SECONDS, CHECK_SECONDS, vad_mode)
    async with decode(CHECK_RECORDING, CHECK_SECONDS) as pcm:
        (chunk,) = [chunk async for chunk in split_at_pauses(pcm, rules)]
    hypothesis = await asr.transcribe(chunk, "English", "")
    if hypothesis.finish_reason == "length":
        raise RecognitionError("The answer for a second of speech did not come to an end.")
    # vLLM compiles what it needs for probabilities at the first request for them.
    await asr.transcribe(chunk, "English", "", with_tokens=True)
    await aligner.align(chunk, CHECK_TEXT, "English")
