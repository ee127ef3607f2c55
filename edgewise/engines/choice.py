"""How a run calculates, decided once: whether devices share a pass (`--fused`), and `--kernels`."""

from __future__ import annotations

from collections.abc import Callable

from edgewise.config import Config
from edgewise.engines import batched
from edgewise.errors import EdgewiseError
from edgewise.models import groupnorm
from edgewise.models.norms import BatchSync, batch_coupled
from edgewise.vector import FlatModel

# Values of the first norm, from which compiled kernels gain (LOG.md):
WORTH = 1 << 29  # in a run, more than compiling takes
CROWDED = 1 << 18  # in a pass, more than calling them from Python takes


def choose_fused(
    config: Config, model: FlatModel, together: int = 1, unmapped: Callable[[], str] = lambda: ""
) -> str:
    """Whether devices share a pass: one gradient where that is exact, or steps side by side where that suits.

    EdgewiseError where it is asked for and is not possible. `together`: how many devices' steps would be
    taken at once; `unmapped`: why the model cannot be mapped over them, nothing if it can.
    """
    obstacle, averaging = _obstacle(config, model), not config.algorithm.sends_gradients
    synced = isinstance(config.norm, BatchSync) and config.model != "fixup-resnet18"
    scattered = config.engine == "torchrun" and config.processes not in (None, "auto", "1")
    if synced and (obstacle or scattered or averaging or config.fused == "off"):
        apart = f"its devices are in {config.processes} processes" if scattered else "fused is off"
        reason = "fedavg's devices take several steps apart" if averaging else obstacle or apart
        raise EdgewiseError(
            "norm: batch-sync needs all devices in lockstep (sync-sgd, a lossless codec, fused), "
            f"but {reason}"
        )
    wanted = config.fused == "on" or (config.fused == "auto" and not obstacle)
    if wanted and averaging and config.fused == "auto":
        wanted = batched.suits(model, together)
    if wanted and averaging and not obstacle and (reason := unmapped()):
        obstacle = f"the model cannot be mapped over devices ({reason})"
    if config.fused == "on" and obstacle:
        raise EdgewiseError(f"fused: cannot be on: {obstacle}; use auto or off")
    return "on" if wanted and not obstacle else "off"


def _obstacle(config: Config, model: FlatModel) -> str:
    """Why devices cannot share a pass and stay what they are alone; nothing if they can."""
    apart = (config.engine == "fleet", "the devices of a fleet are apart")
    if not config.algorithm.sends_gradients:
        return apart[1] if apart[0] else batched.obstacle(config.algorithm, model)
    coupled = batch_coupled(model.module)
    obstacles = (
        apart,
        (model.layout.personal, "every device has norms of its own"),
        (not config.codec.lossless, "the codec loses something on each device"),
        (not config.aggregate.linear, "the aggregate looks at every device's update"),
        (not config.codec.fixed, "what the codec makes differs in length from device to device"),
        (bool(coupled), f"{(coupled or [''])[0] or 'the model'} couples the examples of a batch"),
    )
    return next((words for stands, words in obstacles if stands), "")


def choose_kernels(config: Config, model: FlatModel, run: int, once: int) -> str:
    """`torch` or `compiled`; EdgewiseError where that is asked for and is not possible. After `choose_fused`.

    How many values the first group norm will see, in the run and in one pass, says whether compiling pays.
    """
    if config.kernels == "torch":
        return "torch"
    norms = any(isinstance(part, groupnorm.GroupNorm) for part in model.module.modules())
    mapped = config.fused == "on" and not config.algorithm.sends_gradients
    obstacles = (
        (not norms, f"the model {config.model} has no group norm of edgewise's"),
        (config.accelerator != "cpu", "they are for the CPU"),
        (config.threads > 1, "they use one thread; give more processes in place of more threads"),
        (mapped, "devices' steps side by side need kernels that can be mapped; use --fused off"),
    )
    reason = next((words for stands, words in obstacles if stands), "")
    pays = config.kernels == "compiled" or (run >= WORTH and once >= CROWDED)
    if pays and not reason and not groupnorm.available():
        reason = "Numba is missing, or does not fit; pip install 'edgewise[compiled]'"
    if config.kernels == "compiled" and reason:
        raise EdgewiseError(f"kernels: cannot be compiled: {reason}")
    return "compiled" if pays and not reason else "torch"
