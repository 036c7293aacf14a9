"""What exact strips cost, and that decoding does not grow with the clip: on the CPU, with random weights.

    python benchmarks/vae_strips.py

Times are of a decode of 9 frames of 1280x64 at each number of strips (strips cut the width: that of a full clip).
Peaks are of the resident memory of a process that decodes 5, 41 and 161 frames of 416x224.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

STRIPS, REPEATS = (1, 2, 4), 3


def time_strips() -> None:
    """Seconds for each number of strips, one after the other in turn, and their ratio to the whole."""
    import torch

    from kiwi_cli.engine.random_model import random_pipeline
    from kiwi_cli.model.vae import decode_stream

    vae = random_pipeline("mid", torch.device("cpu"), torch.float32).vae
    latents = torch.randn(1, 48, 3, 4, 80)
    times: dict[int, list[float]] = {strips: [] for strips in STRIPS}
    with torch.no_grad():
        for turn in range(REPEATS + 1):
            for strips in STRIPS:
                begin = time.perf_counter()
                for _ in decode_stream(vae, latents, strips):
                    pass
                if turn:
                    times[strips].append(time.perf_counter() - begin)
    whole = statistics.median(times[1])
    for strips, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{strips} strips: {middle:.2f} s, {middle / whole:.2f} of the whole")


def peak_of(latent_frames: int) -> str:
    """Peak of resident memory of a process that decodes that many latent frames and drops the frames."""
    program = (
        "import sys, torch\n"
        "from kiwi_cli.engine.random_model import random_pipeline\n"
        "pipe = random_pipeline('small', torch.device('cpu'), torch.float32)\n"
        "for _ in pipe.decode(torch.randn(1, 48, int(sys.argv[1]), 14, 26)): pass\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(latent_frames)], capture_output=True, text=True, check=True
    )
    return f"{int(done.stdout.split()[-1]) / 1000:.0f} MB"


if __name__ == "__main__":
    for count in (2, 11, 41):
        print(f"{1 + 4 * (count - 1)} frames: peak {peak_of(count)}", flush=True)
    time_strips()
