"""`kiwi bench speed`: every stage is there and adds up; the table and the JSON object say the same."""

from __future__ import annotations

import json

import pytest

from .cli.terminal import inside

SMALL = ("bench", "speed", "--model", "small", "--size", "64x64", "--frames", "5", "--steps", "3", "--device", "cpu")


def test_every_stage_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, *SMALL, "--reference", "--against", "diffusers", "--json", "-q")
    assert code == 0, err
    data = json.loads(out)
    stages = data["stages"]
    parts = sum(stages[name] for name in ("instruction", "encode", "denoise", "decode"))
    assert 0.5 * stages["edit"] < parts <= 1.5 * stages["edit"]
    assert 0 < stages["step"] <= stages["step_p90"] <= stages["denoise"]
    assert stages["file"] > 0 and stages["first"] > 0
    assert data["tokens"] == (2 + 1) * 2 * 2  # two latent frames and a reference
    assert data["step_tflops"] == pytest.approx(data["tflop"]["step"] / stages["step"])
    assert set(data["library"]) == {"step", "encode", "decode"}
    assert data["memory"]["resident"] > 50e6 and data["plan"].startswith("memory: resident")
    assert {"torch", "diffusers", "transformers"} <= data["versions"].keys()


def test_a_level_of_memory_does_not_change_the_latents(capsys: pytest.CaptureFixture[str]) -> None:
    hashes = set()
    for level in ("resident", "swap"):
        code, out, err = inside(capsys, *SMALL, "--warmups", "0", "--repeats", "1", "--memory", level, "--json", "-q")
        assert code == 0, err
        hashes.add(json.loads(out)["latents"])
    assert len(hashes) == 1


def test_the_table_names_the_rate_and_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = inside(capsys, *SMALL, "--warmups", "0", "--repeats", "1")
    assert code == 0
    for words in ("step, median", "TFLOP/s", "matrix product", "edit, cold", "cpu", "float32", "small random weights"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "huge"), "'huge'"),
        (("--size", "100x64"), "'100x64'"),
        (("--size", "0x64"), "'0x64'"),
        (("--steps", "0"), "--steps"),
        (("--against", "time"), "'time'"),
        (("--memory", "huge"), "'huge'"),
        (("--max-memory", "plenty"), "'plenty'"),
        (("--attention", "best"), "'best'"),
    ],
)
def test_bad_options_are_refused(arguments: tuple[str, str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, *SMALL, *arguments)
    assert code == 2 and words in err and out == ""
