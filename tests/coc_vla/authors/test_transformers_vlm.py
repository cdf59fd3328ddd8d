import dataclasses

import numpy as np
import pytest
import torch

from coc_vla.authors.backends import AuthorFlags
from coc_vla.authors.transformers_vlm import (
    SeededSampling,
    load_transformers_vlm,
    model_identity,
)
from coc_vla.authors.vlm import VlmRequest, VlmUnavailableError
from coc_vla.coc_generation import run
from coc_vla.labels.record import read_labels, read_records
from tests.fixtures.tiny_models import images_for, save_qwen_vl, save_text_model
from world_modality.system.errors import InvalidInputError

CLASSES = {
    "qwen3-vl": "Qwen3VLForConditionalGeneration",
    "qwen2.5-vl": "Qwen2_5_VLForConditionalGeneration",
}
# Questions of different lengths with different numbers of pictures: padding cannot be left out.
REQUESTS = [
    VlmRequest(i, "push the block", images_for(i, 1 + i % 3), "push the block " * (1 + i), seed=i)
    for i in range(4)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return {family: save_qwen_vl(home / family, family) for family in CLASSES}


def loaded(name, backend, **changes):
    flags = AuthorFlags(backend=backend, model_name=str(name), device="cpu", **changes)
    return load_transformers_vlm(flags)


def texts(answers):
    return [answer.text for answer in answers]


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batched_answers_equal_those_asked_for_alone(folders, family, temperature):
    vlm = loaded(folders[family], family, temperature=temperature, max_tokens=12)
    assert type(vlm.model).__name__ == CLASSES[family]
    batched = vlm.answer(REQUESTS)
    alone = [vlm.answer([request])[0] for request in reversed(REQUESTS)][::-1]
    assert texts(batched) == texts(alone)
    assert len(set(texts(batched))) == len(REQUESTS)
    assert [answer.num_tokens for answer in batched] == [answer.num_tokens for answer in alone]


def test_an_answer_depends_on_its_pictures_and_on_its_seed_alone(folders):
    greedy, sampling = (
        loaded(folders["qwen3-vl"], "qwen3-vl", temperature=temperature, max_tokens=12)
        for temperature in (0.0, 1.0)
    )
    request = REQUESTS[0]
    other_pictures = dataclasses.replace(request, images=images_for(99, 1))
    other_seed = dataclasses.replace(request, seed=99)
    assert texts(greedy.answer([request])) != texts(greedy.answer([other_pictures]))
    assert texts(greedy.answer([request])) == texts(greedy.answer([other_seed]))
    assert texts(sampling.answer([request])) != texts(sampling.answer([other_seed]))
    torch.manual_seed(5)
    first = texts(sampling.answer([request]))
    torch.manual_seed(6)
    assert texts(sampling.answer([request])) == first


def samples_of(shares, count, **options):
    """Draw `count` tokens, each row with a seed of its own."""
    scores = torch.log(torch.tensor([shares])).expand(count, -1)
    tokens = torch.zeros((count, 1), dtype=torch.long)
    return SeededSampling(range(count), **options)(tokens, scores).argmax(dim=1).numpy()


def test_seeded_samples_follow_the_softmax():
    shares = [0.5, 0.3, 0.2, 0.0]
    drawn = np.bincount(samples_of(shares, 4_000, temperature=1.0), minlength=4) / 4_000
    assert drawn == pytest.approx(shares, abs=0.03)
    assert set(samples_of(shares, 200, temperature=0.05)) == {0}
    assert set(samples_of(shares, 400, temperature=1.0, top_p=0.6)) == {0, 1}


def test_a_random_model_labels_nothing_and_its_words_are_kept(folders, config):
    config = dataclasses.replace(
        config,
        backend="qwen3-vl",
        model_name=str(folders["qwen3-vl"]),
        device="cpu",
        max_episodes=3,
        batch_size=2,
        max_tokens=6,
        max_retries=1,
    )
    with pytest.raises(InvalidInputError, match="none of 3 episodes got a label"):
        run(config)
    records = read_records(config.output_jsonl)
    assert read_labels(config.output_jsonl) == []
    assert [record.episode_id for record in records] == [0, 1, 2]
    for record in records:
        assert record.attempts == 2
        assert record.tokens == 12
        assert record.raw_text
        assert record.error.startswith("answer refused: ")
    with pytest.raises(InvalidInputError, match="none of 3"):
        run(dataclasses.replace(config, resume=True, batch_size=3))
    again = read_records(config.output_jsonl)
    assert [record.raw_text for record in again] == [record.raw_text for record in records]


def test_a_batch_that_does_not_fit_the_memory_is_halved(folders, monkeypatch):
    vlm = loaded(folders["qwen2.5-vl"], "qwen2.5-vl", max_tokens=3)
    expected = texts(vlm.answer(REQUESTS))
    generate, sizes = type(vlm)._generate, []

    def limited(self, requests, limit):
        sizes.append(len(requests))
        if len(requests) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, requests)

    monkeypatch.setattr(type(vlm), "_generate", lambda self, r: limited(self, r, 1))
    assert texts(vlm.answer(REQUESTS)) == expected
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    monkeypatch.setattr(type(vlm), "_generate", lambda self, r: limited(self, r, 0))
    with pytest.raises(VlmUnavailableError, match="too little memory for one episode"):
        vlm.answer(REQUESTS)


def test_models_that_cannot_serve_are_refused_with_the_reason(folders, tmp_path):
    with pytest.raises(InvalidInputError, match=r"is a qwen2_5_vl model.*--backend auto"):
        loaded(folders["qwen2.5-vl"], "qwen3-vl")
    with pytest.raises(InvalidInputError, match="has no vision"):
        loaded(save_text_model(tmp_path / "blind"), "auto")
    with pytest.raises(InvalidInputError, match="no model that reads images could be loaded"):
        loaded("nobody/nothing", "auto")


def test_other_weights_under_the_same_name_are_noticed(folders, tmp_path):
    before = model_identity(str(folders["qwen3-vl"]), None)
    assert before == model_identity(str(folders["qwen3-vl"]), None)
    other = save_qwen_vl(tmp_path / "other", "qwen3-vl", seed=1)
    assert model_identity(str(other), None) != before
