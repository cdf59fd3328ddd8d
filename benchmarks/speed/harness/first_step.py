"""Train until the end of the first optimiser step, print how long that took, and stop.

`bench_training` starts this in a fresh interpreter, so that imports and start-up are measured as a
user meets them. Prints one line of JSON: seconds of import, seconds from there to the step's end,
and the peak resident memory in bytes.
"""

import json
import os
import sys
import time

from benchmarks.speed.harness.turns import peak_resident_bytes

STARTED_VARIABLE = "BENCH_STARTED"


def main() -> None:
    """Run with the trainer's flags as one JSON argument."""
    started = float(os.environ[STARTED_VARIABLE])
    # torch imports its compiler, 900 modules, when the first optimiser is made; it is import time.
    import torch._dynamo

    from world_modality.policy.config import TrainConfig, from_flags
    from world_modality.training import single as train
    from world_modality.training.trainer import StepRecord, Trainer

    imported = time.time()
    original = Trainer.step

    def first_step(self: Trainer, frames: torch.Tensor) -> StepRecord:
        record = original(self, frames)
        record.losses.total.item()
        result = {
            "import_s": imported - started,
            "first_step_s": time.time() - imported,
            "peak_bytes": peak_resident_bytes(),
        }
        print(json.dumps(result), flush=True)
        # The rest of the epoch is of no interest, nor is what would be written on the way out.
        os._exit(0)

    Trainer.step = first_step  # type: ignore[method-assign]
    flags = json.loads(sys.argv[1])
    train.run(from_flags(TrainConfig, flags))


if __name__ == "__main__":
    main()
