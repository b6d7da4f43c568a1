"""Breaks the equations one at a time in a copy of the bundle, and says which test notices.

    python tests/benchmarks/mutations.py            every mutation, a Markdown table; about ten minutes on one core
    python tests/benchmarks/mutations.py eq7 dice   those whose name contains one of the words

Exits 1 if a mutation survives its tests, or if the source no longer has the text to replace. Only changes that must
break a test belong here: no style, nothing equivalent. A new equation brings its mutations along.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LOSSES, METHOD, METHODS = "losses.py", "methods/tissnet.py", ("test_losses.py", "test_methods.py")
TISSNET, UNET, PATCHGAN = "networks/tissnet.py", "networks/unet2d5.py", "networks/discriminator.py"
NETWORKS = ("test_tissnet.py", "test_unet2d5.py")
CHECKPOINTS, DISTRIBUTED, TRAINER = "checkpoints.py", "distributed.py", "trainer.py"
WHOLEFILE = "data/wholefile.py"
RESUME, PROCESSES = ("test_checkpoints.py",), ("test_distributed.py",)
TIMEOUT = 300  # seconds per mutation

# what several mutations replace
COUNT = "count = global_sum(weight.sum()).clamp(min=1.0) / world_size()"
DICE = (
    "overlap, size = global_sum(torch.stack([(p * target).sum(), p.sum() + target.sum()]))\n"
    "        loss = 1 - (2 * overlap + DICE_SMOOTH) / (size + DICE_SMOOTH)"
)
DROPOUT = "torch.manual_seed(_iteration_seed(self.seed, self.state.iteration, self.state.rank))"


class Mutation(NamedTuple):
    name: str
    file: str  # under bundle/scripts
    old: str  # occurs exactly once
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation("eq1-weight: L1 not weighted", LOSSES, "= self.l1 * (x_t_syn.float()", "= (x_t_syn.float()", METHODS),
    Mutation(
        "eq1: L1 without absolute value", LOSSES, "(x_t_syn.float() - x_t).abs()", "(x_t_syn.float() - x_t)", METHODS
    ),
    Mutation("eq2: G aims at fake", LOSSES, "lsgan_loss(fake, real=True)\n", "lsgan_loss(fake, real=False)\n", METHODS),
    Mutation(
        "eq3: real and fake swapped",
        LOSSES,
        "lsgan_loss(fake, real=False) + lsgan_loss(real, real=True)\n",
        "lsgan_loss(fake, real=True) + lsgan_loss(real, real=False)\n",
        METHODS,
    ),
    Mutation("eq3: D_g's fake not detached", LOSSES, "cat([x_s, x_t_syn.detach()]", "cat([x_s, x_t_syn]", METHODS),
    Mutation("eq3: D_t's fake not detached", LOSSES, "M * x_t_syn.detach()", "M * x_t_syn", METHODS),
    Mutation(
        "eq3: D_g judges the target before the source",
        LOSSES,
        "real = D_g(torch.cat([x_s, x_t], dim=1))",
        "real = D_g(torch.cat([x_t, x_s], dim=1))",
        METHODS,
    ),
    Mutation("lsgan: absolute in place of square", LOSSES, "float(real)) ** 2", "float(real)).abs()", METHODS),
    Mutation(
        "eq4: L1 without mask", LOSSES, "(M * (x_t_syn.float() - x_t)).abs()", "(x_t_syn.float() - x_t).abs()", METHODS
    ),
    Mutation(
        "eq4: D_t's real image without mask",
        LOSSES,
        "real = D_t(torch.cat([M * x_s, M * x_t]",
        "real = D_t(torch.cat([M * x_s, x_t]",
        METHODS,
    ),
    Mutation(
        "eq4: samples without tumor count",
        LOSSES,
        "(per_sample * weight).sum() / count",
        "per_sample.sum() / count",
        METHODS,
    ),
    Mutation("eq4: averaged over all samples", LOSSES, COUNT, "count = float(len(weight))", METHODS),
    Mutation(
        "eq4: G's D_t term unweighted",
        LOSSES,
        "real=True, weight=weight)\n        return terms",
        "real=True)\n        return terms",
        METHODS,
    ),
    Mutation("eq4: box grown by a voxel", LOSSES, "if margin > 0:", "margin += 1\n        if margin > 0:", METHODS),
    Mutation("eq4: box of the union of two axes", LOSSES, "for axis in (2, 3, 4):", "for axis in (2, 3):", METHODS),
    Mutation("eq5: S_p follows train()", LOSSES, "            self.S_p.eval()\n", "            pass\n", METHODS),
    Mutation("eq5: S_p not frozen", LOSSES, "S_p.requires_grad_(False).eval()", "S_p.eval()", METHODS),
    Mutation(
        "eq5: S_p sees a detached image", LOSSES, "self.S_p(x_t_syn), y)", "self.S_p(x_t_syn.detach()), y)", METHODS
    ),
    Mutation("dice: no smoothing", LOSSES, "DICE_SMOOTH = 1.0", "DICE_SMOOTH = 1e-8", METHODS),
    Mutation(
        "dice: per sample",
        LOSSES,
        DICE,
        "overlap, size = (p * target).flatten(1).sum(1), (p + target).flatten(1).sum(1)\n"
        "        loss = (1 - (2 * overlap + DICE_SMOOTH) / (size + DICE_SMOOTH)).mean()",
        METHODS,
    ),
    Mutation(
        "dice: no sigmoid", LOSSES, "p = torch.sigmoid(logits)\n        over", "p = logits\n        over", METHODS
    ),
    Mutation("eq7: sign", LOSSES, "+ (1 - y_c) * y_e", "- (1 - y_c) * y_e", METHODS),
    Mutation("eq7: y_e not inverted", LOSSES, "y_c * (1 - y_e)", "y_c * y_e", METHODS),
    Mutation(
        "eq9: error target inverted",
        LOSSES,
        "(y_c > 0.5).to(y.dtype))).abs()",
        "(y_c <= 0.5).to(y.dtype))).abs()",
        METHODS,
    ),
    Mutation("eq9: error target with gradient", LOSSES, "y_c = y_c.detach()", "y_c = y_c * 1", METHODS),
    Mutation("eq9: error head against the tumor", LOSSES, "self.error_target(y_c, y))", "y)", METHODS),
    Mutation(
        "eq8: consistency on logits",
        LOSSES,
        'y_f = torch.sigmoid(outputs["y_f_logits"].float())',
        'y_f = outputs["y_f_logits"].float()',
        METHODS,
    ),
    Mutation(
        "eq8: consistency against a detached y_r", LOSSES, "((y_f - y_r) ** 2)", "((y_f - y_r.detach()) ** 2)", METHODS
    ),
    Mutation(
        "eq9: lambda_S missing",
        LOSSES,
        "self.consistency = segmentor * consistency",
        "self.consistency = consistency",
        METHODS,
    ),
    Mutation(
        "weight 0: D_g still runs",
        LOSSES,
        "        if self.adversarial:\n            fake = D_g",
        "        if True:\n            fake = D_g",
        METHODS,
    ),
    Mutation("weight 0: error decoder still runs", METHOD, "error=self.segmentor.needs_error", "error=True", METHODS),
    Mutation("weight 0: S still runs", METHOD, "segmentor=self.segmentor.needs_segmentor,", "segmentor=True,", METHODS),
    Mutation("method: fine and error weights swapped", METHOD, 'fine=w["fine"]', 'fine=w["error"]', METHODS),
    Mutation(
        "method: D_t judges in place of D_g",
        METHOD,
        "terms = self.global_synthesis(x_s, x_t_syn, x_t, self.D_g)",
        "terms = self.global_synthesis(x_s, x_t_syn, x_t, self.D_t)",
        METHODS,
    ),
    Mutation(
        "method: real and fake swapped",
        METHOD,
        "self.global_synthesis.discriminator(x_s, x_t_syn, x_t,",
        "self.global_synthesis.discriminator(x_s, x_t, x_t_syn,",
        METHODS,
    ),
    Mutation("G: no tanh", TISSNET, "torch.tanh(heads[:, :1])", "heads[:, :1]", NETWORKS),
    Mutation(
        "G: heads swapped",
        TISSNET,
        "torch.tanh(heads[:, :1]), heads[:, 1:]",
        "torch.tanh(heads[:, 1:]), heads[:, :1]",
        NETWORKS,
    ),
    Mutation(
        "S: y_c detached",
        TISSNET,
        "torch.sigmoid(y_c_logits))",
        "torch.sigmoid(y_c_logits.detach()))",
        ("test_tissnet.py", "test_methods.py"),
    ),
    Mutation(
        "S: x_t_syn detached",
        TISSNET,
        "inputs.append(x_t_syn)",
        "inputs.append(x_t_syn.detach())",
        ("test_tissnet.py", "test_methods.py"),
    ),
    Mutation(
        "S: logits of y_c", TISSNET, "inputs.append(torch.sigmoid(y_c_logits))", "inputs.append(y_c_logits)", NETWORKS
    ),
    Mutation("S: y_c padded with -1", TISSNET, "[0.0] * self.use_y_c", "[BACKGROUND] * self.use_y_c", NETWORKS),
    Mutation(
        "U-Net: padded with 0",
        UNET,
        "self.background.to(x.dtype) * (1 - inside)",
        "0 * (1 - inside)",
        ("test_unet2d5.py",),
    ),
    Mutation(
        "U-Net: one planar level less",
        UNET,
        "kernel_size=(3, 3, 1 if level < planar_levels else 3)",
        "kernel_size=(3, 3, 1 if level + 1 < planar_levels else 3)",
        ("test_unet2d5.py",),
    ),
    Mutation(
        "PatchGAN: another field",
        PATCHGAN,
        "STRIDES = (2, 2, 2, 1, 1)",
        "STRIDES = (2, 2, 1, 1, 1)",
        ("test_discriminator.py",),
    ),
    Mutation(
        "PatchGAN: norm on the first layer",
        PATCHGAN,
        "norm=None if i == 0 else norm",
        "norm=norm",
        ("test_discriminator.py",),
    ),
    Mutation("resume: dropout not seeded anew", TRAINER, DROPOUT, "pass", RESUME),
    Mutation(
        "resume: the same dropout in every iteration",
        TRAINER,
        DROPOUT,
        DROPOUT.replace("self.state.iteration", "0"),
        ("test_trainer.py",),
    ),
    Mutation(
        "resume: an epoch's first samples in its middle",
        CHECKPOINTS,
        "loader.sampler.start = start * loader.batch_size",
        "pass",
        RESUME,
    ),
    Mutation(
        "resume: batches counted as samples",
        CHECKPOINTS,
        "loader.sampler.start = start * loader.batch_size",
        "loader.sampler.start = start",
        RESUME,
    ),
    Mutation(
        "resume: another batch size not counted",
        CHECKPOINTS,
        "rest * content[BATCH] // _samples_per_iteration(engine)",
        "rest",
        RESUME,
    ),
    Mutation(
        "resume: in the middle of a step",
        CHECKPOINTS,
        "start -= start % engine.accumulation_steps",
        "start -= 0",
        RESUME,
    ),
    Mutation(
        "resume: the file's number of epochs",
        CHECKPOINTS,
        "engine.state.max_epochs, engine.state.epoch_length = epochs, length",
        "engine.state.epoch_length = length",
        RESUME,
    ),
    Mutation("resume: best score forgotten", CHECKPOINTS, 'self.best = float(state["best"])', "pass", RESUME),
    Mutation("resume: partial file not renamed", WHOLEFILE, "partial.replace(path)", "pass", RESUME),
    Mutation(
        "resume: written in place",
        WHOLEFILE,
        'partial = path.with_name(f".{path.name}.partial")',
        "partial = path",
        RESUME,
    ),
    Mutation("resume: renamed before it is on the disk", CHECKPOINTS, "os.fsync(file.fileno())", "pass", RESUME),
    Mutation(
        "resume: another run's file replaced",
        CHECKPOINTS,
        "if not self.resume and self.path.is_file():",
        "if False:",
        RESUME,
    ),
    Mutation(
        "resume: SIGTERM between the batches of a step",
        CHECKPOINTS,
        "if trainer.at_a_step and not at_epochs_end:",
        "if not at_epochs_end:",
        RESUME,
    ),
    Mutation(
        "resume: SIGTERM before an epoch's validation and schedules",
        CHECKPOINTS,
        "if trainer.at_a_step and not at_epochs_end:",
        "if trainer.at_a_step:",
        RESUME,
    ),
    Mutation(
        "resume: SIGTERM writes nothing",
        CHECKPOINTS,
        "engine.terminate()",
        "engine.terminate(skip_completed=True)",
        RESUME,
    ),
    Mutation(
        "resume: SIGTERM's handler stays",
        CHECKPOINTS,
        "signal.signal(signal.SIGTERM, before)",
        "pass",
        RESUME,
    ),
    Mutation("processes: Dice of one's own batch", LOSSES, "global_sum(torch.stack([", "(torch.stack([", PROCESSES),
    Mutation("processes: one's own tumors counted", LOSSES, COUNT, "count = weight.sum().clamp(min=1.0)", PROCESSES),
    Mutation("processes: gradient of a sum not scaled", DISTRIBUTED, "own = count * values", "own = values", PROCESSES),
    Mutation("processes: gradients summed", DISTRIBUTED, "flat /= count", "pass", PROCESSES),
    Mutation(
        "processes: G's gradients not averaged",
        TRAINER,
        "average_gradients(self.method.generator_parameters())",
        "pass",
        PROCESSES,
    ),
    Mutation(
        "processes: the discriminators' not averaged", TRAINER, "average_gradients(discriminators)", "pass", PROCESSES
    ),
    Mutation(
        "processes: each one's own first weights",
        TRAINER,
        "lambda engine: share_weights(engine.method)",
        "print",
        PROCESSES,
    ),
    Mutation(
        "processes: each one's own buffers",
        DISTRIBUTED,
        "(*module.parameters(), *module.buffers())",
        "module.parameters()",
        PROCESSES,
    ),
    Mutation(
        "processes: losses of the first alone in the logs",
        TRAINER,
        "global_mean(own)",
        "own",
        PROCESSES,
    ),
    Mutation(
        "processes: the same dropout in all",
        TRAINER,
        DROPOUT,
        DROPOUT.replace("self.state.rank", "0"),
        ("test_trainer.py",),
    ),
)


def run_tests(copy: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Runs test files against the copy; returns whether all passed, and the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-W", "ignore"]
    command += ["-o", f"pythonpath={copy / 'bundle'}", *(str(ROOT / "tests" / name) for name in tests)]
    environment = os.environ | {"PYTHONPATH": str(copy / "bundle"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return False, f"no end within {TIMEOUT} s"
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode == 1 and failed is None):
        raise RuntimeError(f"pytest itself failed ({done.returncode}):\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.returncode == 0, failed.group(1) if failed else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="only mutations whose name contains one of these")
    words = parser.parse_args().words
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]

    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(
            ROOT / "bundle" / "scripts", copy / "bundle" / "scripts", ignore=shutil.ignore_patterns("__pycache__")
        )
        passed, failure = run_tests(copy, tuple(sorted({name for m in chosen for name in m.tests})))
        if not passed:
            sys.exit(f"{failure} fails without any mutation: repair it first.")
        print("| mutation | file | caught by |\n|---|---|---|")
        for mutation in chosen:
            path = copy / "bundle" / "scripts" / mutation.file
            source = path.read_text()
            if source.count(mutation.old) != 1:
                result = f"NOT APPLIED: {source.count(mutation.old)} times in the source"
            else:
                path.write_text(source.replace(mutation.old, mutation.new))
                passed, failure = run_tests(copy, mutation.tests)
                path.write_text(source)
                result = "SURVIVED" if passed else f"`{failure}`"
            bad += not result.startswith("`")
            print(f"| {mutation.name} | `{mutation.file}` | {result} |", flush=True)
    print(f"\n{len(chosen) - bad} of {len(chosen)} mutations caught.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
