"""The Dockerfile, built as it is by Docker or Buildah on a stub of its base image: order,
arguments, secret, contents.

The stub has a shell and a python3 that records its calls. A build takes about two seconds.
"""

import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 300
TOKEN = "hf_never_in_a_layer"
CHANGED = ("handler.py", "contract/settings.py")
COPIED = ("Dockerfile", ".dockerignore", "LICENSE", "requirements.txt", "builder", "src")
COMMANDS = (
    "sh",
    "cat",
    "chmod",
    "grep",
    "mkdir",
    "rm",
    "sed",
)  # of this machine, with their libraries
PYTHON3 = """#!/bin/sh
token=${HF_TOKEN:+of ${#HF_TOKEN} letters}
echo "python3 $* | index ${PIP_INDEX_URL-none} | hub ${HF_ENDPOINT-none} | token $token" >>/calls
case "$*" in
*"-m venv"*) mkdir -p /opt/worker ;;
*"pip list"*) echo torch==2.11.0+cu129; echo vllm==0.21.0; echo numpy==2.3.5 ;;
*"--constraint"*) cat constraints.txt >/constraints; cat others.txt >/others ;;
*fetch_models.py) mkdir -p /models; cat /tmp/fetch/src/contract/*.py >/models/contract.py ;;
esac
"""


@dataclass(frozen=True)
class Image:
    """What `save` wrote of an image: its configuration, and its files layer by layer."""

    config: dict
    layers: list[dict[str, bytes]]  # path → content
    ids: list[str]

    @property
    def files(self) -> dict[str, bytes]:
        return {name: content for layer in self.layers for name, content in layer.items()}

    @property
    def calls(self) -> list[str]:
        return self.files["calls"].decode().splitlines()


@dataclass(frozen=True)
class Builder:
    """Docker or Buildah, with the options that keep its images apart from the machine's own."""

    command: list[str]
    options: list[str]  # what is passed to `build`
    name: str

    def build(self, tag: str, context: Path, *arguments: str) -> subprocess.CompletedProcess:
        options = [*self.options, "--platform", "linux/amd64", "-t", self.tag(tag)]
        command = [*self.command, "build", *options, *arguments, str(context)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            env=os.environ | {"HF_TOKEN": TOKEN},
        )

    def tag(self, name: str) -> str:
        return f"localhost/qwen3-asr-test-{os.getpid()}:{name}"

    def save(self, tag: str, path: Path) -> Image:
        save = ["save", "-o", str(path)] if self.name == "docker" else ["push"]
        target = [] if self.name == "docker" else [f"docker-archive:{path}"]
        subprocess.run(
            [*self.command, *save, self.tag(tag), *target],
            check=True,
            capture_output=True,
            timeout=DEADLINE_SECONDS,
        )
        with tarfile.open(path) as archive:
            (manifest,) = json.load(archive.extractfile("manifest.json"))
            config = json.load(archive.extractfile(manifest["Config"]))
            layers = [_files(archive, name) for name in manifest["Layers"]]
        return Image(config, layers, config["rootfs"]["diff_ids"])

    def remove(self, *tags: str) -> None:
        subprocess.run(
            [*self.command, "rmi", "-f", *map(self.tag, tags)],
            capture_output=True,
            timeout=DEADLINE_SECONDS,
        )


def _files(archive: tarfile.TarFile, name: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=archive.extractfile(name)) as layer:
        return {
            member.name.removeprefix("./"): layer.extractfile(member).read()
            for member in layer
            if member.isfile()
        }


def find_builder(folder: Path) -> Builder:
    running = ["docker", "info"]
    if (
        shutil.which("docker")
        and subprocess.run(running, capture_output=True, timeout=DEADLINE_SECONDS).returncode == 0
    ):
        return Builder(["docker"], ["--network", "none"], "docker")
    if shutil.which("buildah"):
        store = [
            "--root",
            str(folder / "store"),
            "--runroot",
            str(folder / "run"),
            "--storage-driver",
            "vfs",
        ]
        return Builder(
            ["buildah", *store],
            ["--isolation", "chroot", "--format", "docker", "--layers"],
            "buildah",
        )
    pytest.skip("neither a running Docker nor Buildah is here")


def write_stub(folder: Path) -> None:
    """The context of a base image with COMMANDS, the libraries that they load, and PYTHON3."""
    binaries = [Path(shutil.which(name)) for name in COMMANDS]
    alone = {"PATH": os.environ["PATH"]}  # without the LD_PRELOAD that vLLM sets in its process
    loaded = subprocess.check_output(["ldd", *binaries], text=True, env=alone)
    libraries = set(re.findall(r"(/\S+) \(0x", loaded))
    for source, target in [(b, f"usr/bin/{b.name}") for b in binaries] + [
        (path, path[1:]) for path in libraries
    ]:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(source).resolve(), folder / target)
    (folder / "bin").mkdir()
    shutil.copy(folder / "usr/bin/sh", folder / "bin/sh")
    (folder / "tmp").mkdir()
    (folder / "usr/bin/python3").write_text(PYTHON3)
    (folder / "usr/bin/python3").chmod(0o755)
    (folder / "Dockerfile").write_text(
        'FROM scratch\nCOPY . /\nENV PATH=/usr/bin:/bin\nENTRYPOINT ["vllm", "serve"]\n'
    )


def write_context(folder: Path) -> Path:
    """A checkout: the files that the build needs, and some that must not get into the image."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "src" / "__pycache__").mkdir(exist_ok=True)
    (folder / "src" / "__pycache__" / "handler.pyc").write_text("of another Python")
    (folder / "secret.txt").write_text("of the checkout's owner")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Iterator[dict[str, Image]]:
    """Three images.

    "mirrors" has every argument and the secret, "plain" none. "changed" is plain with another src/.
    """
    folder = tmp_path_factory.mktemp("image")
    builder = find_builder(folder)
    (folder / "stub").mkdir()
    (folder / "context").mkdir()
    write_stub(folder / "stub")
    context = write_context(folder / "context")
    base = builder.build("base", folder / "stub")
    if base.returncode:
        pytest.skip(f"{builder.name} cannot build here: {base.stderr.strip().splitlines()[-1]}")
    more = {
        "mirrors": [
            "--secret",
            "id=HF_TOKEN,env=HF_TOKEN",
            "--build-arg",
            "PIP_INDEX_URL=http://pip.example/simple",
            "--build-arg",
            "HF_ENDPOINT=http://hub.example",
            "--build-arg",
            "MODEL_NAME=Qwen/Qwen3-ASR-1.7B",
        ],
        "plain": [],
        "changed": [],
    }
    built = {}
    try:
        for tag, arguments in more.items():
            if tag == "changed":
                for name in CHANGED:
                    (context / "src" / name).write_text("# another\n")
            run = builder.build(
                tag, context, "--build-arg", f"BASE_IMAGE={builder.tag('base')}", *arguments
            )
            assert run.returncode == 0, run.stderr
            built[tag] = builder.save(tag, folder / f"{tag}.tar")
        yield built
    finally:
        builder.remove(*more, "base")


def test_packages_are_installed_and_checked_before_the_weights_are_fetched(images):
    steps = [re.match(r"python3 (?:-m )?(\S+ ?\S*)", call)[1] for call in images["plain"].calls]
    assert steps == [
        "venv --system-site-packages",
        "pip list",
        "pip install",
        "pip install",
        "check_image.py requirements.txt",
        "/tmp/fetch/builder/fetch_models.py |",
        "-c import",
        "compileall -q",
    ]


def test_torch_and_vllm_stay_the_base_images(images):
    files = {name: images["plain"].files[name].decode() for name in ("constraints", "others")}
    assert re.findall(r"^(?:torch|vllm)\S*==.*", files["constraints"], re.M) == [
        "torch==2.11.0+cu129",
        "vllm==0.21.0",
    ]
    assert not re.search(r"^(torch|vllm)==", files["others"], re.M)


def test_qwen_asr_comes_without_its_demos_packages(images):
    (alone,) = [call for call in images["plain"].calls if "--no-deps" in call]
    assert (
        "--requirement alone.txt" in alone
        and "qwen-asr==" not in images["plain"].files["others"].decode()
    )


def test_without_a_secret_the_models_are_fetched_without_a_token(images):
    assert (
        "python3 /tmp/fetch/builder/fetch_models.py | index none | hub none | token "
        in images["plain"].calls
    )


def test_the_secret_and_the_mirrors_reach_the_build(images):
    *_, install, _check, fetch, _inspect, _compile = images["mirrors"].calls
    assert "| index http://pip.example/simple |" in install
    assert fetch.endswith(f"| hub http://hub.example | token of {len(TOKEN)} letters")


def test_the_secret_is_in_no_layer_and_in_no_history(images):
    image = images["mirrors"]
    assert not [
        name
        for layer in image.layers
        for name, content in layer.items()
        if TOKEN.encode() in content
    ]
    assert TOKEN not in json.dumps(image.config)


def test_the_mirrors_are_not_in_the_environment_of_the_worker(images):
    assert not [
        entry
        for entry in images["mirrors"].config["config"]["Env"]
        if entry.startswith(("PIP_", "HF_ENDPOINT", "HF_TOKEN"))
    ]


def test_the_folder_of_the_worker_holds_src_and_nothing_else(images):
    sources = (ROOT / "src").rglob("*.py")
    wanted = {f"app/{path.relative_to(ROOT / 'src')}": path.read_bytes() for path in sources}
    assert {
        name: content for name, content in images["plain"].files.items() if name.startswith("app/")
    } == wanted


def test_nothing_else_of_the_checkout_is_in_the_image(images):
    assert "of the checkout's owner" not in [
        content.decode(errors="replace") for content in images["plain"].files.values()
    ]


def test_the_image_starts_the_worker(images):
    config = images["plain"].config["config"]
    assert (config.get("Entrypoint") or [], config["Cmd"], config["WorkingDir"]) == (
        [],
        ["python3", "-u", "handler.py"],
        "/app",
    )


def test_the_image_says_what_it_is(images):
    all_labels = images["mirrors"].config["config"]["Labels"].items()
    labels = {
        name.rpartition(".")[2]: value
        for name, value in all_labels
        if name.startswith("org.opencontainers.image.")
    }
    assert labels.keys() == {"title", "description", "licenses"}


def test_the_licences_of_the_worker_and_of_the_weights_are_in_the_image(images):
    files = images["plain"].files
    assert files["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert (
        b"Apache License\n                           Version 2.0"
        in files["licenses/apache-2.0.txt"]
    )


def test_of_the_contract_the_build_reads_the_default_models_only(images):
    defaults = (ROOT / "src" / "contract" / "defaults.py").read_bytes()
    assert images["plain"].files["models/contract.py"] == defaults


def test_without_an_argument_the_worker_takes_its_default_model(images):
    models = [
        entry
        for entry in images["plain"].config["config"]["Env"]
        if re.match("(MODEL|ALIGNER)_", entry)
    ]
    assert {entry.partition("=")[2] for entry in models} <= {""}


def test_a_model_chosen_for_the_build_is_in_the_workers_environment(images):
    assert "MODEL_NAME=Qwen/Qwen3-ASR-1.7B" in images["mirrors"].config["config"]["Env"]


def test_a_change_in_the_code_rebuilds_its_own_layer_and_none_before_it(images):
    """The layer behind it, with the bytecode, changes too."""
    differ = [a != b for a, b in zip(images["plain"].ids, images["changed"].ids, strict=True)]
    code = [("app/handler.py" in layer) for layer in images["changed"].layers].index(True)
    assert not any(differ[:code]) and differ[code]
