"""Blocks embedded side by side, against one after another."""

import threading

import numpy as np
import pytest
import torch

from world_modality.encode.encoder_workers import encode_side_by_side
from world_modality.encode.vision_encoders import EncoderRequest, build_encoder


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_blocks_side_by_side_give_the_bits_of_one_after_another(two_threads):
    encoder = build_encoder(
        EncoderRequest("random-vit", random_vit_size="tiny", random_vit_image_size=42),
        torch.device("cpu"),
    )
    images = np.random.default_rng(0).integers(0, 256, (70, 48, 48, 3), dtype=np.uint8)
    blocks = [images[i : i + 16] for i in range(0, 70, 16)]
    expected = [encoder.encode(block) for block in blocks]
    found = list(encoder.encode_blocks(iter(blocks), 16))
    assert [len(block) for block in found] == [16, 16, 16, 16, 6]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_workers_share_the_threads_and_the_last_block_has_all(two_threads):
    meeting = threading.Barrier(2, timeout=10)
    seen = []

    def encode(block):
        seen.append((len(block), threading.get_ident(), torch.get_num_threads()))
        if len(block) == 3:
            meeting.wait()  # only two at a time get past
        return block

    blocks = [np.full(3, i) for i in range(4)] + [np.full(1, 4)]
    found = list(encode_side_by_side(encode, blocks, 3))
    assert [int(block[0]) for block in found] == [0, 1, 2, 3, 4]
    assert {threads for size, _, threads in seen if size == 3} == {1}
    assert (1, threading.get_ident(), 2) in seen
    assert torch.get_num_threads() == 2


def test_a_worker_runs_ahead_but_not_far_and_its_error_arrives(two_threads):
    pulled = []

    def blocks():
        for i in range(50):
            pulled.append(i)
            yield np.full(3, i)

    def encode(block):
        if block[0] == 4:
            raise ValueError("block 4")
        return block

    encoded = encode_side_by_side(encode, blocks(), 3)
    assert [int(next(encoded)[0]) for _ in range(4)] == [0, 1, 2, 3]
    assert len(pulled) <= 4 + 2
    with pytest.raises(ValueError, match="block 4"):
        next(encoded)
