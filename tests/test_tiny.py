"""The model in the package does what an instruction says: asserted on scenes that no part of its training has seen.

`benchmarks/tiny_quality.py` measures the same on a hundred scenes a kind; docs/tiny.md has its table.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.base.understood import match
from kiwi_cli.bench.tiny import looks
from kiwi_cli.bench.tiny.edits import BatchEditor, Task
from kiwi_cli.bench.tiny.quality import FIRST_SEED, edge_correlation, make_case, nearest
from kiwi_cli.synth.looks import TINTS
from kiwi_cli.synth.natural import natural_scene
from kiwi_cli.synth.phrases_looks import ADJECTIVES, STRENGTHS
from kiwi_cli.synth.scenes import make_scene
from kiwi_cli.synth.wordings import EVERY_KIND, KINDS, LOOK_KINDS, WORDINGS, fill, seen_wordings
from kiwi_cli.video import probe
from kiwi_cli.weights import embedded
from kiwi_cli.weights.settings import read_settings

from . import fakes
from .cli.terminal import frames_of, inside
from .conftest import DATA, ROOT

TINY = ROOT / "src/kiwi_cli/tiny"
CLIP = ROOT / "examples/clip.mp4"
SCENES = 5
OFFERS: tuple[str, ...] = read_settings(TINY).offers


@pytest.fixture(scope="module")
def editor() -> Any:
    from kiwi_cli import KiwiPipeline

    pipe = KiwiPipeline.from_pretrained("tiny", device="cpu", dtype="float32")
    return BatchEditor(pipe, steps=read_settings(TINY).steps or 50)


def test_it_is_small_and_plain() -> None:
    assert embedded.folder_of(embedded.named("tiny")) == TINY  # type: ignore[arg-type]
    weights = [path for path in TINY.rglob("*") if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in weights) <= 40_000_000
    assert {path.suffix for path in TINY.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jinja", ".txt"}
    assert OFFERS and set(OFFERS) <= set(EVERY_KIND)


@pytest.mark.slow
def test_held_out_instructions_are_followed(editor: Any) -> None:
    """Wordings and scenes it has not seen: the result is nearest to the truth of what was asked, of all 13 truths and
    the source, in three cases of four; and to the truth's edges, not to a formless colour."""
    offered = [kind for kind in OFFERS if kind in KINDS]
    cases = [make_case(1000 + number) for number in range(SCENES)]
    tasks = [
        Task(number, case.prompt(kind, "held-out"), case.edits[kind].reference, seed=number)
        for number, case in enumerate(cases)
        for kind in offered
    ]
    results = editor([case.scene.source for case in cases], tasks)
    right: Counter[str] = Counter()
    edges = []
    wanted = [(case, kind) for case in cases for kind in offered]
    for (case, kind), result in zip(wanted, results, strict=True):
        right[kind] += nearest(case, result) == kind
        edges.append(edge_correlation(result, case.edits[kind].target))
    assert sum(right.values()) >= 0.75 * len(tasks), right
    assert np.mean(edges) > 0.2, edges


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_scene, natural_scene])
def test_looks_asked_for_in_words_it_never_saw_are_given(make: Any, editor: Any) -> None:
    """Nearest to the truth of what was asked, of those of all looks, styles and the source, in three cases of four."""
    asks = [ask for ask in looks.ASKS if ask.kind in OFFERS]
    scenes = [make(FIRST_SEED + 1000 + number, 64, 64, 5, held_out=True) for number in range(3)]
    rng = np.random.default_rng(0)
    tasks = [Task(number, ask.prompt("held-out", "plain", rng), None, number) for number in range(3) for ask in asks]
    results = editor([scene.source for scene in scenes], tasks)
    truths = [looks.truths(scene) for scene in scenes]
    wrong = []
    for number, (task, result) in enumerate(zip(tasks, results, strict=True)):
        ask, candidates = asks[number % len(asks)], truths[task.source]
        if not looks.measure(ask, candidates, result, candidates[ask.name], result)["right"]:
            wrong.append(task.instruction)
    assert len(tasks) >= 30 and len(wrong) <= 0.25 * len(tasks), wrong


def test_a_clip_turns_to_night_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.mp4"
    words = ("turn it into a night scene", "--model", "tiny", "--device", "cpu", "--frames", 5)
    code, out, err = inside(capsys, "edit", CLIP, *words, "-o", output)
    assert (code, out) == (0, f"{output}\n"), err
    assert "works at 144x80" in err and "detail from the source" in err  # larger than its own size, and said so
    before, after = probe(CLIP), probe(output)
    assert after.size == before.size and after.frame_count == 5
    source, result = (np.stack(frames_of(path)[:5]).astype(np.float32) for path in (CLIP, output))
    assert result.mean() < 0.5 * source.mean()  # dark,
    assert result[..., 2].mean() > 1.5 * result[..., 0].mean()  # blue,
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    assert np.corrcoef((result @ luma).ravel(), (source @ luma).ravel())[0, 1] > 0.6  # and still the same picture


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """A photograph's: the model's own size, so that nothing is scaled."""
    picture = Image.open(ROOT / "examples/reference.png").convert("RGB").resize((128, 96))
    return np.asarray(picture)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_is_given_a_picture_as_one_and_a_short_clip_as_five_frames(
    count: int, pixels: np.ndarray, editor: Any, tmp_path: Path
) -> None:
    """It was trained on pictures, and on five and 17 frames at a time, and on nothing between one and five."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(count):
        Image.fromarray(pixels).save(source / f"{number}.png")
    given, out = (source / "0.png", tmp_path / "out.png") if count == 1 else (source, tmp_path / "out")
    options = {"instruction": "make the video sepia", "model": "tiny", "size": "128x96", "steps": 4, "detail": "model"}
    assert fakes.edit(given, out, editor.pipe, **options).frames == count
    files = [out] if count == 1 else sorted(out.glob("*.png"))
    given_to_it = [pixels] * (1 if count == 1 else 5)
    whole = editor.pipe.edit(np.stack(given_to_it), "make the video sepia", steps=4, seed=0)
    found = np.stack([np.asarray(Image.open(path)) for path in files])
    assert np.array_equal(found, whole[:count])


def test_a_picture_with_a_reference_is_given_as_five_frames(pixels: np.ndarray, editor: Any, tmp_path: Path) -> None:
    """It never saw a picture with one."""
    source, out = tmp_path / "in.png", tmp_path / "out.png"
    Image.fromarray(pixels).save(source)
    words, shown = "replace the background with the one in the picture", ROOT / "examples/reference.png"
    options = {"model": "tiny", "size": "128x96", "steps": 4, "detail": "model", "references": (shown,), "force": True}
    fakes.edit(source, out, editor.pipe, instruction=words, **options)
    with Image.open(shown) as picture:
        whole = editor.pipe.edit(np.stack([pixels] * 5), words, [picture.convert("RGB")], steps=4, seed=0)
    assert np.array_equal(np.asarray(Image.open(out)), whole[0])


def test_a_number_of_frames_only_limits(tmp_path: Path) -> None:
    """Nine of a clip's frames are edited as they are in the whole clip's first windows, not nine at once."""
    plan = fakes.plan(CLIP, tmp_path / "out.mp4", instruction="make it sepia", model="tiny", frames=9)
    assert plan.span.frame_count == 9 and plan.windows is not None and plan.windows.count == 2


# -- what it understands ------------------------------------------------------------------------------------------


def held_out_sentences(kind: str) -> list[str]:
    """Held-out templates of a kind with every strength and what they name."""
    texts = WORDINGS[kind].held_out
    names = list(ADJECTIVES.values())
    pairs = [{"first": first, "second": second} for first, second in zip(names, [*names[1:], names[0]], strict=True)]
    named = pairs if kind == "two-looks" else [{"colour": colour} for colour in TINTS] if kind == "tint" else [{}]
    strengths = [{slot: words[0] for slot, words in each.items()} for each in STRENGTHS.values()]
    return [fill(text, {**strength, **slots}) for text in texts for slots in named for strength in strengths]


SLOTS = {"object": "red ball", "colour": "blue", "ground": "plain green", "place": "top left corner"}


def test_its_sentences_are_those_it_was_trained_with() -> None:
    understood = read_settings(TINY).understands
    assert set(OFFERS) <= set(understood) and set(KINDS) <= set(understood)
    assert understood == {kind: tuple(texts) for kind, texts in seen_wordings().items() if kind in understood}


@pytest.mark.parametrize("kind", KINDS)
def test_wordings_it_never_saw_are_told_apart(kind: str) -> None:
    sentences = read_settings(TINY).understands
    for text in WORDINGS[kind].held_out:
        found = match(fill(text, SLOTS), sentences, OFFERS)
        assert found.understood == (kind in OFFERS), text
        assert len(found.nearest) <= 3 and not (found.nearest and found.other)
        assert found.other in {"", *sentences} - {*OFFERS}
        assert set(found.nearest) <= {sentence for offered in OFFERS for sentence in sentences[offered]}


@pytest.mark.slow
def test_of_300_wishes_that_it_cannot_do_hardly_one_is_taken_for_one_that_it_can() -> None:
    """Nor would they be by a model that knows every look; of held-out wordings of those none is refused."""
    wishes = (DATA / "wishes.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(wishes)) == len(wishes) == 300
    sentences = dict(read_settings(TINY).understands)
    of_looks = {kind: seen_wordings()[kind] for kind in LOOK_KINDS}
    for known, offers in ((sentences, OFFERS), ({**sentences, **of_looks}, (*OFFERS, *LOOK_KINDS))):
        taken = [wish for wish in wishes if match(wish, known, offers).understood]
        assert len(taken) <= 3, taken
        refused = [
            text
            for kind in LOOK_KINDS
            for text in held_out_sentences(kind)
            if kind in offers and not match(text, known, offers).understood
        ]
        assert refused == []


@pytest.mark.parametrize(
    ("instruction", "nearest"),
    [
        ("make it a rainy day", "snowy day"),
        ("make it look like a sunrise", "sunset"),
        ("turn the door red", "red"),
        ("make it vintge", "vintage"),
        ("blak and white", "black and white"),
        # Of these it knows nothing like it, or the opposite, or a kind of edit that it is not good for.
        ("in watercolour", ""),
        ("zoom in", ""),
        ("turn it upside down", ""),
        ("make it rain", ""),
        ("remove the red ball", ""),
        ("change the background to a beach", ""),
        ("don't make it night", ""),
        ("make it anything but sepia", ""),
        ("make everything black and white except the bunny", ""),
        ("stop the snow", ""),
        ("colorize this black and white film", ""),
        ("slow motion", ""),
    ],
)
def test_an_instruction_that_is_none_of_its_kinds_is_refused_with_what_is_like_it(
    instruction: str, nearest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("edit", CLIP, instruction, "--model", "tiny", "--device", "cpu", "-o", tmp_path / "out.mp4")
    for hidden in ((), ("-q",), ("--json",)):
        code, _, err = inside(capsys, *command, *hidden, "--dry-run")
        assert code == 2 and "warning: " not in err, err
        assert f"'tiny' does not know '{instruction}'" in err and read_settings(TINY).good_for in err
        hint = err.partition("hint: ")[2]
        assert hint.startswith('say "' if nearest else "`kiwi prompts") and nearest in hint.partition(";")[0]
        assert ("released model" in hint) == (not nearest)
        assert "kiwi prompts --model tiny" in hint and "--force" in hint
        code, _, err = inside(capsys, *command, *hidden, "--dry-run", "--force")
        assert code == 0 and err.count("warning: ") == 1 and "will make some other edit" in err


def test_of_several_looks_it_is_told_how_to_make_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("edit", CLIP, "make it brighter, less colourful and snowy", "--model", "tiny", "--device", "cpu")
    code, _, err = inside(capsys, *command, "--dry-run")
    assert code == 2
    assert 'say "make it brighter", and of its result "make it less colourful", and "snowy please"; --force' in err


def test_a_sentence_that_is_about_a_reference_is_led_to_where_one_is_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The command that the hint names does it, when the picture is put in."""
    said = "change the background to the reference image"
    code, _, err = inside(capsys, "edit", CLIP, said, "--model", "tiny", "--device", "cpu", "--dry-run")
    assert code == 2 and f"reference picture of '{said}' is not given" in err
    command = shlex.split(
        err.rpartition("`kiwi ")[2].partition("`")[0].replace("PICTURE", str(ROOT / "examples/reference.png"))
    )
    code, out, err = inside(capsys, *command, "--device", "cpu", "--dry-run", "--json")
    assert code == 0 and "understood as: reference background" in out, err


def test_the_sentences_that_it_names_and_lists_work(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "prompts", "--model", "tiny", "--json")
    assert code == 0, err
    kinds = json.loads(out)["kinds"]
    assert list(kinds) == list(OFFERS)
    for kind, texts in kinds.items():
        if kind.startswith("reference"):
            continue
        for text in texts:
            assert inside(capsys, "edit", CLIP, text, "--model", "tiny", "--device", "cpu", "--dry-run")[0] == 0
    for text in match("make it a rainy day", read_settings(TINY).understands, OFFERS).nearest:
        assert match(text, read_settings(TINY).understands, OFFERS).understood
    more = json.loads(inside(capsys, "prompts", "--model", "tiny", "--all", "--json")[1])["kinds"]
    assert all(set(texts) < set(more[kind]) for kind, texts in kinds.items())


@pytest.mark.parametrize(
    ("instruction", "kind", "told"),
    [
        ("make it snowy", "snow", "make it snowy"),
        ("Make it SNOWY!", "snow", "make it snowy"),
        ("darker", "darker", "make it darker"),
        ("darker by 50%", "darker", "make it darker"),
        ("a tiny bit warmer, thanks", "warmer", "make it slightly warmer"),
        ("much warmer pls", "warmer", "make it much warmer"),
        ("it's too dark", "brighter", "make it brighter"),
        ("blue", "tint", "let everything be blue"),
        ("a slight blue tint", "tint", "make it a bit blue"),
        ("desert", "desert", "turn it into a desert"),
        ("very warm", "warmer", "make it much warmer"),
        ("turn the brightness down", "darker", "give it less brightness"),
        ("i'd like it warmer, please and thank you", "warmer", "make it warmer"),
        ("strong red tint", "tint", "make it extremely red"),
        ("from colour to black and white", "black-and-white", "turn it into a black and white film"),
        ("make it very snowy", "snow", "make it snowy"),
    ],
)
def test_what_it_knows_is_given_to_it_in_a_sentence_of_its_own(
    instruction: str, kind: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one word, or with words it has not learnt, it made something else: "darker" was black and white."""
    assert told in read_settings(TINY).understands[kind]
    command = ("edit", CLIP, instruction, "--model", "tiny", "--device", "cpu", "--dry-run", "--json")
    for hidden in ((), ("--task", "style")):
        code, out, err = inside(capsys, *command, *hidden)
        assert code == 0 and "warning" not in err
        (said,) = (line for line in json.loads(out)["notices"] if line.startswith("understood as: "))
        assert said.startswith(f"understood as: {kind.replace('-', ' ')}") and json.loads(out)["instruction"] == told
        assert (f'given to the model as "{told}"' in said) == (told != instruction or bool(hidden))
        assert ("without what --task adds" in said) == bool(hidden)
        assert ("in one strength only" in said) == ("very snowy" in instruction)


def test_to_the_letter_it_is_given_what_was_typed_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("edit", CLIP, "darker", "--model", "tiny", "--device", "cpu", "--dry-run", "--json", "--raw")
    data = json.loads(inside(capsys, *command)[1])
    assert data["instruction"] == "darker"
    (said,) = (line for line in data["notices"] if "darker" in line)
    assert "none of the sentences that the model was trained with" in said and "understood" not in said


@pytest.mark.parametrize(
    "instruction",
    [
        "turn the black and white video into colour",
        "give the black and white film colour",
        "change it from night to day",
        "make night look like day",
        "take the night away",
        "remove the sepia",
        "less snow",
        "restore the faded colours of this old photograph",
        "fix this faded photograph from the seventies",
        "avoid a dark and dramatic black and white look",
        "the opposite of night",
        "white balance",
    ],
)
def test_what_asks_for_the_opposite_of_what_it_knows_is_refused(instruction: str) -> None:
    found = match(instruction, read_settings(TINY).understands, OFFERS)
    assert not found.understood, found.kind


def test_it_says_what_it_is_good_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = inside(capsys, "show", "tiny", "--json")
    assert code == 0 and json.loads(out)["offers"] == list(OFFERS)
