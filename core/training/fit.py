"""Training, the same for every app: Lightning's Trainer set up once.

    from core.training.fit import fit
    fitted = fit(module, data, recipe, out)

`module` is a LightningModule with `training_step(batch, batch_idx)` and a `validation_step` that logs the score, `data`
a LightningDataModule whose loaders come from `core.training.loading.loader`. The optimiser is the recipe's: the module
has no `configure_optimizers`. It may have `parameter_groups(recipe)` and `freeze_encoder(bool)`.
"""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from core.device import check_precision, pick
from core.errors import SettingError
from core.training import optimizers
from core.training.clock import Clock
from core.training.hooks import Averaging, Freezing, Rates, Seeds
from core.training.keeper import Keeper
from core.training.passes import Remember, TwoPass, TwoPassMixed
from core.training.progress import Progress
from core.training.recipe import Recipe
from core.training.stops import Stopped, Stops, listening
from core.training.store import BEST, FOLDER, LAST, OURS, PlainCheckpoints, clear, plain, read, refuse_changes


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        epochs: that were run, over all processes of the run.
        score: the best value of the monitored score, None without one.
        best_epoch: where it was, counted from 1.
        best: the checkpoint with those weights (`state_dict`).
        seconds: of training, over all processes of the run.
        history: one row an epoch: epoch, step, lr, loss, seconds and what the module logged.
        resumed_from: epochs that were complete when this process went on, None if it began.
        main: whether this process is the first of several devices: only it should write results.
    """

    epochs: int
    score: float | None
    best_epoch: int
    best: Path
    seconds: float
    history: list[dict[str, Any]] = field(repr=False)
    resumed_from: int | None = None
    main: bool = True


def fit(
    module: LightningModule,
    data: LightningDataModule,
    recipe: Recipe,
    out: Path | str,
    *,
    device: str = "auto",
    precision: str | None = None,
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    monitor: str | None = "val/score",
    mode: Literal["max", "min"] = "max",
    fingerprint: Mapping[str, Any] | None = None,
) -> Fitted:
    """Train `module`, or go on with the run in `out`, and load the best weights into it.

    The same call goes on where an ended one stood: after Ctrl-C with the next batch, after kill -9 with the last epoch
    (or `save_every` minutes) saved. A finished run says so and returns. On one CPU the outcome is bit for bit that of
    a run that never stopped, unless a time limit steers it.

    Args:
        module: what to train.
        data: what to train on.
        recipe: how.
        out: folder of the run: `checkpoints/` and `logs/`.
        device: as `core.device.pick` takes it.
        precision: over the recipe's; "bf16" and "16" mean the mixed ones.
        devices: how many of them, on each node.
        nodes: machines.
        strategy: Lightning's name for how several devices share the work.
        monitor: the logged score that decides which epoch is best; None takes the last epoch.
        mode: whether a larger or a smaller score is better.
        fingerprint: plain values that say what data and settings this run is about.

    Raises:
        SettingError: a recipe that does not fit, or a run in `out` with another recipe or fingerprint.
        FileError: a damaged checkpoint, a full disk.
        DivergedError: the loss is no number any more.
        KeyboardInterrupt: after Ctrl-C, once everything is saved.
    """
    out = Path(out)
    where = pick(device)
    if precision is not None:
        recipe = replace(recipe, precision=_mixed(precision))
    check_precision(where, recipe.precision)
    if where.index is not None and devices * nodes > 1:
        raise SettingError(f"device {device} is one device, and {devices * nodes} were asked for; use --device cuda")
    if recipe.patience and monitor is None:
        raise SettingError("recipe: patience needs a score to wait for, and none is monitored")
    marks = dict(plain(fingerprint or {}, "fingerprint"))
    clear(out / FOLDER)
    last = out / FOLDER / LAST
    state = read(last, peek=True)[OURS] if last.is_file() else None
    if state is not None:
        refuse_changes(out, state, recipe, marks)
        if state["finished"]:
            sys.stdout.write(f"{out}: already trained, {len(state['history'])} epochs; another --out starts anew\n")
            return _finish(module, out, state, len(state["history"]))
    clock = Clock(recipe, *((state["elapsed"], state["validation"]) if state else ()))
    averaging = Averaging(recipe.ema) if recipe.ema else None
    with ExitStack() as stack:
        stops = stack.enter_context(listening())
        stack.enter_context(_quiet())
        stack.enter_context(_dressed(module, recipe))
        keeper = Keeper(
            out, recipe, marks, clock, stops, monitor=monitor, mode=mode, averaging=averaging, state=state
        )  # fmt: skip
        progress = Progress(clock, keeper)
        keeper.told = progress.said
        callbacks: list[Callback] = [
            Seeds(recipe.seed, state["epoch"] if state else 0, state["generators"] if state else None),
            Rates(recipe, clock),
            *([Freezing(module, recipe.freeze_epochs)] if recipe.freeze_epochs else []),
            *([averaging] if averaging else []),
            progress,
            keeper,
        ]
        trainer = _trainer(recipe, out, where, callbacks, state, devices, nodes, strategy)
        _run(trainer, module, data, last if state else None, stops, out)
        main = trainer.is_global_zero
        kept = {"score": keeper.score, "best_epoch": keeper.best_epoch, "history": keeper.history}
        kept["elapsed"] = clock.elapsed
    return _finish(module, out, kept, state["epoch"] if state else None, main)


def _run(
    trainer: Trainer, module: LightningModule, data: LightningDataModule, last: Path | None, stops: Stops, out: Path
) -> None:
    if last is not None and trainer.is_global_zero:
        sys.stdout.write(f"{out}: going on with the run there\n")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except Stopped:
        if trainer.is_global_zero:
            sys.stderr.write(f"{out}: saved; the same command goes on\n")
        if stops.asked == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise KeyboardInterrupt from None
    except SystemExit:  # how Lightning ends after a KeyboardInterrupt
        if stops.asked == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise


def _finish(
    module: LightningModule, out: Path, state: Mapping[str, Any], resumed: int | None, main: bool = True
) -> Fitted:
    best = out / FOLDER / BEST
    module.load_state_dict(read(best)["state_dict"])
    history = list(state["history"])
    return Fitted(
        len(history), state["score"], state["best_epoch"], best, state["elapsed"], history, resumed, main
    )  # fmt: skip


def _trainer(
    recipe: Recipe, out: Path, device: torch.device, callbacks: list[Callback], state: dict[str, Any] | None,
    devices: int, nodes: int, strategy: str,
) -> Trainer:  # fmt: skip
    several = devices * nodes > 1
    if several and strategy == "auto" and recipe.freeze_epochs:
        strategy = "ddp_find_unused_parameters_true"  # frozen weights give no gradient to share
    if strategy.startswith(("fsdp", "deepspeed", "model_parallel")) and (recipe.ema or recipe.sharpness):
        raise SettingError(f"strategy {strategy} splits the weights: ema and sharpness need them whole, use ddp")
    plugins: list[Any] = [PlainCheckpoints()]
    if recipe.sharpness:
        rho, adaptive = recipe.sharpness, recipe.sharpness_adaptive
        if recipe.precision == "32":
            two: TwoPass | TwoPassMixed = TwoPass(rho=rho, adaptive=adaptive)
        else:
            two = TwoPassMixed(recipe.precision, device.type, rho=rho, adaptive=adaptive)
        plugins.append(two)
        callbacks.insert(0, Remember(two))
    step = state["history"][-1]["step"] if state and state["history"] else None
    return Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=[device.index] if device.index is not None and not several else devices,
        num_nodes=nodes,
        strategy=strategy,
        precision=None if recipe.sharpness else recipe.precision,
        plugins=plugins,
        callbacks=callbacks,
        logger=TensorBoardLogger(out, name="logs", version="", purge_step=step, default_hp_metric=False),
        max_epochs=recipe.epochs,
        limit_train_batches=recipe.steps_per_epoch,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip or None,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=10,
        default_root_dir=out,
        use_distributed_sampler=True,
    )


@contextmanager
def _dressed(module: LightningModule, recipe: Recipe) -> Iterator[None]:
    """The recipe's optimiser and compilation on the module, taken off again after."""
    if type(module).configure_optimizers is not LightningModule.configure_optimizers:
        raise SettingError(f"{type(module).__name__} configures its own optimiser; leave that to the recipe")
    parts = [part for part in module.children() if any(True for _ in part.parameters())] if recipe.compile else []
    object.__setattr__(module, "configure_optimizers", lambda: optimizers.optimizer(module, recipe))
    for part in parts:
        part.compile()
    try:
        yield
    finally:
        del module.configure_optimizers
        for part in parts:
            part._compiled_call_impl = None  # there is no public way back


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notes on devices, its products and its guesses about loaders are held back inside."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning(_fabric|\.|$)")
        warnings.filterwarnings("ignore", message=r".*(does not have many workers|logging interval|is not resumable)")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _mixed(precision: str) -> Any:
    known = {"32": "32", "bf16": "bf16-mixed", "16": "16-mixed", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}
    if precision not in known:
        raise SettingError(f"precision is 32, bf16 or 16, got {precision!r}")
    return known[precision]
