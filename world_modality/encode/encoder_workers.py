"""A model on a CPU: whole blocks side by side, a thread or few each.

Many threads on one block wait for each other at every layer, and for the slowest of them wherever
decoding has taken one of their cores.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

# Each holds the activations of a block.
MAX_WORKERS = 4


def encode_side_by_side(
    encode: Callable[[np.ndarray], np.ndarray], blocks: Iterable[np.ndarray], block_size: int
) -> Iterator[np.ndarray]:
    """Yield what `encode` gives for each block, in order.

    The workers share the threads that torch was given (OMP_NUM_THREADS, or one a core). A block of
    another size is computed alone, with all of them: products of few rows can differ in the last
    bit with the number of threads, and the same command has always given the same bits.

    Args:
        encode: a torch model's; called from several threads at a time.
        blocks: pulled at most one further than there are workers.
        block_size: of all blocks but the last.
    """
    num_threads = torch.get_num_threads()
    num_workers = min(num_threads, MAX_WORKERS)
    pool = ThreadPoolExecutor(
        num_workers, initializer=torch.set_num_threads, initargs=(num_threads // num_workers,)
    )
    ahead: deque[Future[np.ndarray]] = deque()
    try:
        for block in blocks:
            if len(block) != block_size:
                while ahead:
                    yield ahead.popleft().result()
                yield encode(block)
                continue
            ahead.append(pool.submit(encode, block))
            if len(ahead) > num_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)  # a worker's number is also that of threads to come
