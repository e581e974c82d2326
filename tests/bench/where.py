"""Where a step's time goes, by kind of operation."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from tests.bench.compare import Setting
    from tests.bench.peers import Job

# The first whose word is in an operation's name; everything else is "other".
KINDS = {
    "convolutions": ("convolution", "conv2d"),
    "attention": ("attention", "aten::bmm", "aten::exp_"),
    "linear maps and products": ("linear", "addmm", "aten::mm", "matmul", "gemm"),
    "normalisations": ("norm",),
    "activations": ("silu", "gelu", "sigmoid"),
    "copies": ("copy", "clone", "contiguous", "aten::cat", "to_copy", "memcpy"),
    "sums and factors": ("aten::add", "aten::mul", "aten::div", "aten::sub", "elementwise"),
}


def kind_of(operation: str) -> str:
    """Return what kind an operation is of."""
    name = operation.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def table(times: Counter[str], title: str) -> str:
    """Return seconds by kind as a Markdown table, the most first."""
    total = sum(times.values())
    lines = [f"| {title} | seconds | share |", "|---|---|---|"]
    lines += [f"| {kind} | {seconds:.3f} | {seconds / total:.1%} |" for kind, seconds in times.most_common()]
    return "\n".join(lines)


def profile_job(setting: Setting, job: Job) -> str:
    """Draw a job with each peer under the profiler; return what its time went to, kind by kind."""
    told = []
    for peer in setting.make().values():
        peer.load()
        peer.draw(job)
        on_gpu = setting.device.startswith("cuda")
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
        with profile(activities=activities) as found:
            peer.draw(job)
        times: Counter[str] = Counter()
        for event in found.key_averages():
            micro = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            times[kind_of(event.key)] += micro / 1e6
        told.append(table(times, f"{peer.name}, {job.pixels} px, batch {job.batch}, {job.steps} steps"))
    return "\n\n".join(told)
