"""One process for each GPU: the same command with a shard and a device each, and one progress for all.

What is done is read from the run's folder, so that a process that dies loses only the item it was at.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from kiwi_cli.errors import DeviceError, UsageError

POLL = 0.5  # seconds


def parse_gpus(text: str) -> list[str]:
    """'all', '0,1' or device names such as 'cuda:0,cpu' -> devices.

    Raises:
        UsageError: not understood. DeviceError: 'all' and there is none.
    """
    if text == "all":
        import torch

        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if not devices:
            raise DeviceError("no GPU here for --gpus all", "name devices: --gpus cpu, or leave it out")
        return devices
    devices = [f"cuda:{part}" if part.isdigit() else part for part in (p.strip() for p in text.split(",")) if part]
    if not devices:
        raise UsageError(f"devices not understood: '{text}'", "pass --gpus all, or --gpus 0,1")
    return devices


def run_shards(
    arguments: Sequence[str],
    devices: Sequence[str],
    count_done: Callable[[], int],
    total: int,
    progress: Callable[[str, int, int], None],
) -> list[tuple[str, int, str]]:
    """Run `kiwi` once for each device and wait for all.

    Args:
        arguments: of the command, without shard and device.
        count_done: items done so far, over all processes.

    Returns:
        (device, exit code, last words) of the processes that did not end well.
    """
    processes, logs = [], []
    for number, device in enumerate(devices, 1):
        command = [sys.executable, "-m", "kiwi_cli", *arguments, "--shard", f"{number}/{len(devices)}"]
        log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (not a pipe: nobody reads it meanwhile)
        logs.append(log)
        processes.append(
            subprocess.Popen([*command, "--device", device, "--quiet"], stdout=subprocess.DEVNULL, stderr=log)
        )
    try:
        shown = -1
        while any(process.poll() is None for process in processes):
            time.sleep(POLL)
            done = count_done()
            if done != shown:
                shown = done
                if done < total:
                    progress("items", done, total)
        progress("items", total, total)
    except BaseException:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
    bad = []
    for device, process, log in zip(devices, processes, logs, strict=True):
        log.seek(0)
        words = log.read()
        log.close()
        if process.returncode:
            lines = [line for line in words.splitlines() if line.startswith("error: ")]
            bad.append((device, process.returncode, lines[-1].removeprefix("error: ") if lines else words[-300:]))
    return bad
