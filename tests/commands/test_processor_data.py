"""Learning from pictures: a wrapper, its processor, and pairs of a picture and text."""

import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import SMALL, byte_tokenizer, problem_of, run_command, with_config
from PIL import Image
from test_pruned_wrappers import gemma3_processor
from transformers import AutoModelForMultimodalLM, AutoProcessor
from wrapping import PICTURE, tiny_wrapper

from disp_llm.commands.evaluate import evaluation_stream
from disp_llm.config.errors import InputError
from disp_llm.config.evaluate import EvalConfig
from disp_llm.config.parts import MachineConfig, ScoreConfig
from disp_llm.data.example_tokens import stream_of_examples
from disp_llm.data.pictures import read_pictures
from disp_llm.data.tokens import Corpus
from disp_llm.data.windows import Windows, joined
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.calibration import calibration_tokens
from disp_llm.models.loading import load
from disp_llm.training.losses import mean_losses

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% for part in message.content %}{% if part.type == 'image' %}<begin>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}[end]{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory) -> Path:
    """A tiny Gemma 3 with its processor, 24 pictures and what is said of them."""
    folder = tmp_path_factory.mktemp("seeing")
    tiny_wrapper("gemma3").save_pretrained(folder / "model")
    gemma3_processor(folder / "model")
    (folder / "pictures").mkdir()
    rows = []
    for number in range(24):
        place = f"pictures/{number}.png"
        noise(number).save(folder / place)
        rows.append({"image": place, "prompt": f"Number {number}?", "answer": f" It is {number}."})
    content = io.BytesIO()
    noise(0).save(content, "PNG")
    rows[0]["image"] = base64.b64encode(content.getvalue()).decode()
    rows[1]["image"] = f"data:image/png;base64,{rows[0]['image']}"
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def stream_of(wrapper: Path, template: str = "auto"):
    loaded = load(str(wrapper / "model"), MachineConfig(device="cpu", dtype="float32"))
    config = EvalConfig("tiny", processor_data=(wrapper / "pairs.jsonl",), template=template)
    return loaded, evaluation_stream(config, loaded)[0]


def test_an_answer_costs_what_transformers_says(wrapper):
    """Prompt, picture and answer by the processor at once, and transformers' own loss of it."""
    loaded, stream = stream_of(wrapper)
    processor = AutoProcessor.from_pretrained(wrapper / "model")
    windows = next(stream.alone())
    made = processor(
        text=["<begin>\nNumber 0? It is 0.</s>"], images=[noise(0)], return_tensors="pt"
    )
    ids = torch.cat([torch.tensor([[1]]), made["input_ids"]], 1)
    assert torch.equal(windows.tokens, ids)
    assert int(windows.counted.sum()) == len(" It is 0.") + 1
    assert (ids == PICTURE).sum() == 4
    labels = ids.masked_fill(~windows.counted, -100)
    types = torch.nn.functional.pad(made["token_type_ids"], (1, 0))
    wanted = loaded.model(
        input_ids=ids, pixel_values=made["pixel_values"], token_type_ids=types, labels=labels
    ).loss
    target = PrunableModel.of(loaded)
    assert float(mean_losses(target, windows)) == pytest.approx(float(wanted), rel=1e-5)
    other = Windows(
        windows.tokens,
        windows.counted,
        windows.places,
        (
            {
                **windows.shown[0],
                "pixel_values": -windows.shown[0]["pixel_values"],
            },
        ),
    )
    assert float(mean_losses(target, other)) != pytest.approx(float(wanted), rel=1e-4)


def test_pictures_and_text_stand_in_one_batch(wrapper):
    """Each costs what it costs alone, whatever room follows it."""
    loaded, stream = stream_of(wrapper)
    target = PrunableModel.of(loaded)
    shown = stream.random_windows(2, 40, torch.Generator().manual_seed(0))
    assert shown.tokens.shape == (2, 40)
    text = Windows(torch.randint(4, 256, (1, 40)))
    batch = joined([text, shown])
    alone = [float(mean_losses(target, one)) for one in (text, shown.one(0), shown.one(1))]
    torch.testing.assert_close(mean_losses(target, batch), torch.tensor(alone))
    turned = batch[torch.tensor([2, 0])]
    torch.testing.assert_close(mean_losses(target, turned), torch.tensor([alone[2], alone[0]]))
    assert turned.shown[1] == {}


def test_every_mask_learns_from_a_picture(wrapper):
    loaded, stream = stream_of(wrapper)
    target = PrunableModel.of(loaded)
    mask = torch.ones(target.layout.entries, requires_grad=True)
    with masked(target) as masking:
        masking.set(mask)
        mean_losses(target, next(stream.alone())).sum().backward()
    assert (mask.grad != 0).float().mean() > 0.8


def test_a_chat_template_writes_prompt_and_answer(wrapper, tmp_path):
    loaded = load(str(wrapper / "model"), MachineConfig(device="cpu", dtype="float32"))
    processor = AutoProcessor.from_pretrained(wrapper / "model")
    processor.chat_template = TEMPLATE
    given = read_pictures((wrapper / "pairs.jsonl",), "auto")
    stream = stream_of_examples(given, loaded.tokenizer, None, lambda: processor)
    one = stream.examples[3]
    text = loaded.tokenizer.decode(one.tokens)
    assert text.startswith("[user]")
    assert text.endswith("[assistant] It is 3.[end]")
    assert loaded.tokenizer.decode(one.tokens[one.counted]) == " It is 3.[end]"


def test_commands_learn_from_pictures(wrapper, text_file, tmp_path):
    """prune beside text, recover and eval."""
    model, pairs, run = wrapper / "model", wrapper / "pairs.jsonl", tmp_path / "run"
    small = [*SMALL, "--length", 48, "--calibration-length", 48, "--context", 48]
    done = run_command(
        "prune", model, "--keep", 0.7, "--processor-data", pairs, "--text", text_file,
        "--weights", 1, 3, "--output-dir", run, "--json", *small,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    result = json.loads((run / "result.json").read_text())
    assert "answers in the last 3 of pairs.jsonl" in json.dumps(result)
    done = run_command(
        "recover", run / "keep-0.7", "--processor-data", pairs, "--output-dir", tmp_path / "after",
        "--tokens", 192, "--length", 48, "--context", 48, "--windows", 4, "--device", "cpu",
        "--dtype", "float32", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run_command(
        "eval", run / "keep-0.7", "--processor-data", pairs, "--metric", "exact_match",
        "--limit", 2, "--windows", 0, "--device", "cpu", "--dtype", "float32", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["answers"]["answers"] == 2
    assert measured["perplexity"] > 1
    assert found["models"][0]["keep"] <= 0.7
    AutoModelForMultimodalLM.from_pretrained(run / "keep-0.7")


def test_methods_are_compared_on_pictures(wrapper, tmp_path):
    """Those that cannot read pictures say so in their row; all are measured on the same answers."""
    done = run_command(
        "compare", wrapper / "model", "--methods", "learned", "fisher", "magnitude", "flap",
        "--keep", 0.7, "--processor-data", wrapper / "pairs.jsonl",
        "--output-dir", tmp_path / "run", "--json", "--steps", 6, "--length", 48,
        "--calibration-sequences", 4, "--calibration-length", 48, "--context", 48, "--windows", 4,
        "--device", "cpu", "--dtype", "float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["method"]: row for row in found["rows"]}
    assert "processor_data: is not read by this method" in rows.pop("flap")["error"]
    assert rows.keys() == {"learned", "fisher", "magnitude"}
    for row in rows.values():
        assert row["error"] is None
        assert row["keep"] <= 0.7
        assert len(row["window_losses"]) == len(found["dense"]["window_losses"]) == 3


def test_methods_that_look_at_activations_refuse_pictures(wrapper, text_file, tmp_path):
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    problem = with_config(problem, scores=ScoreConfig(calibration_length=48))
    problem = replace(problem, corpus=Corpus((stream_of(wrapper)[1],)))
    with pytest.raises(InputError, match="processor_data: is not read by this method"):
        calibration_tokens(problem)


def test_a_prompt_that_is_read_in_both_directions_is_refused(wrapper):
    """PaliGemma says of each token whether all others before and behind see it."""
    found = transformers.models.siglip.image_processing_pil_siglip
    pixels = found.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    pixels.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(pixels, byte_tokenizer())
    given = read_pictures((wrapper / "pairs.jsonl",), "plain")
    with pytest.raises(InputError, match="line 1, has a prompt that the model reads in both dir"):
        stream_of_examples(given, processor.tokenizer, None, lambda: processor)


GOOD = {"image": "pictures/3.png", "prompt": "a", "answer": "b"}
BAD = {
    "no picture": ({"prompt": "a", "answer": "b"}, "has no image in line 2"),
    "no answer": ({"image": "pictures/3.png", "prompt": "a"}, "has no answer in line 2"),
    "gone": (GOOD | {"image": "nowhere.png"}, "cannot be read in line 2 (nowhere.png: No such"),
    "a number": (GOOD | {"image": 3}, "has no path or base64 but a number as 'image' in line 2"),
    "no image": (GOOD | {"image": "pairs.jsonl"}, "has an image that is no picture in line 2"),
    "base64": (GOOD | {"image": "data:image/png;base64,%%"}, "has damaged base64 in line 2"),
    "cut off": (GOOD | {"image": "cut.png"}, "has an image that is damaged"),
    "messages": ({"image": "pictures/3.png", "messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
    ]}, "has messages in line 2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_one_line(wrapper, kind):
    row, says = BAD[kind]
    whole = (wrapper / "pictures" / "3.png").read_bytes()
    (wrapper / "cut.png").write_bytes(whole[: len(whole) // 2])
    file = wrapper / "bad.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n{json.dumps(row)}\n")
    with pytest.raises(InputError) as raised:
        read_pictures((file,), "auto")
    assert says in str(raised.value)
    assert "bad.jsonl" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_that_does_not_see_says_so(wrapper, llama_folder):
    done = run_command("eval", llama_folder, "--processor-data", wrapper / "pairs.jsonl")
    assert done.returncode == 2
    assert "processor-data: needs a model that sees" in done.stderr


def test_a_processor_that_cannot_be_made_is_one_line(wrapper, tmp_path):
    """Some need libraries that are not there; this one is none that transformers has."""
    folder = tmp_path / "model"
    shutil.copytree(wrapper / "model", folder)
    said = {"processor_class": "Gemma3Processor", "image_processor": {"image_processor_type": "No"}}
    (folder / "processor_config.json").write_text(json.dumps(said))
    done = run_command("eval", folder, "--processor-data", wrapper / "pairs.jsonl")
    assert done.returncode == 2
    assert done.stderr.count("disp-llm: ") == 1
    assert f"the processor of '{folder}' cannot be made" in done.stderr
