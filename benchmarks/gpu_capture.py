"""Calls captured in CUDA graphs while records are served: the first look-up of a process made inside a capture, and remembered ones.

Usage: python benchmarks/gpu_capture.py [FILE]      (about two minutes on an H100; compiles FlashInfer's cuBLAS kernels first)

Prints one JSON document, and writes it to FILE; exit code 1 if anything is not as it must be. Processes one after the other tune, verify,
and serve. In the last, by call: does a graph work whose first look-up was made inside the capture, and was that answered from a record (it
is the default where the runner would have to list its tactics first); does a graph of remembered calls give bit for bit what the same
call gives eagerly; did look-ups synchronise (an error inside a capture) or allocate on the GPU; and does a session that tunes leave a call
inside a capture unmeasured and right.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_hot_path import calls, machine

REPLAYS = 3
REMEMBERED_CALLS = 100


@contextmanager
def counted_allocations() -> Iterator[list[int]]:
    """Add up what is allocated on the GPU within ``choose_one``, whoever calls it."""
    import torch
    from flashinfer.autotuner import AutoTuner

    tuner_class = type(AutoTuner.get())
    plain, found = tuner_class.choose_one, [0, 0]

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        answer = plain(self, *args, **kwargs)
        found[0] += torch.cuda.memory_stats()["allocation.all.allocated"] - before
        found[1] += 1
        return answer

    tuner_class.choose_one = counting
    try:
        yield found
    finally:
        tuner_class.choose_one = plain


def captured(call: Callable[[], Any], times: int = 1) -> Any:
    """Return what a graph of so many calls leaves in the call's output, after some replays."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            output = call()
    output.zero_()
    for _ in range(REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    return output.clone()


def working() -> dict[str, Callable[[], Any]]:
    """Return the calls that work here, each made once: kernels are loaded and workspaces allocated before anything is captured."""
    import torch

    found = {}
    for name, call in calls().items():
        try:
            call()
        except Exception as error:  # noqa: BLE001 - a backend that this machine lacks is said, not tested
            sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")
            continue
        found[name] = call
    torch.cuda.synchronize()
    return found


def tune(root: str) -> dict[str, Any]:
    """Measure, or verify what another process has measured."""
    from flashinfer.autotune_cache import MeasurementPolicy

    import fi_cachestore

    with fi_cachestore.autotune(root=root, policy=MeasurementPolicy(execution_mode="eager")) as session:
        made = working()
    report = session.report()
    return {"calls": sorted(made), "tuned_count": report.tuned_count, "verified_count": report.verified_count}


def serve(root: str) -> dict[str, Any]:
    """Capture calls that this process has never looked up, then remembered ones."""
    import torch
    from flashinfer.autotuner import AutoTuner

    import fi_cachestore

    fi_cachestore.attach(root=root)
    made, found = working(), {}  # what is served here has been loaded
    fi_cachestore.detach()
    session = fi_cachestore.attach(root=root)  # and nothing is remembered of it
    state = AutoTuner.get().state  # type: ignore[attr-defined]
    for name, call in made.items():
        remembered, misses = len(state.memo), dict(session.report().misses)
        with counted_allocations() as allocated:
            cold = captured(call)
            is_answered = len(state.memo) > remembered
            eager = call().clone()
            warm = captured(call, times=REMEMBERED_CALLS)
        found[name] = {
            "answered_from_a_record_inside_the_capture": is_answered,
            "remembered": len(state.memo) - remembered,
            "misses": {why: count for why, count in session.report().misses.items() if misses.get(why) != count},
            "first_graph_is_close_to_eager": is_close(cold, eager),
            "later_graph_equals_eager": bool(torch.equal(warm, eager)),
            "output_is_finite": bool(torch.isfinite(eager).all() and eager.abs().sum() > 0),
            "look_ups": allocated[1],
            "allocations_in_look_ups": allocated[0],
        }
    session.detach()
    return found


def tune_inside(root: str) -> dict[str, Any]:
    """Capture calls while a session tunes that has no records: nothing may be measured in a capture."""
    import torch

    import fi_cachestore

    made, found = working(), {}
    with fi_cachestore.autotune(root=root) as session:
        for name, call in made.items():
            inside = captured(call)
            found[name] = {"tuned_count": session.report().tuned_count, "output": inside}
    for name, call in made.items():
        eager = call().clone()
        torch.cuda.synchronize()
        found[name]["graph_is_close_to_eager"] = is_close(found[name].pop("output"), eager)
    return found


def is_close(one: Any, other: Any) -> bool:
    """Whether two results differ by no more than two kernels may."""
    import torch

    return bool(torch.allclose(one.float(), other.float(), rtol=2e-2, atol=1.0))


def spawn(task: str, root: str) -> dict[str, Any]:
    result = subprocess.run([sys.executable, __file__, "worker", task, root], capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    if result.returncode != 0 or not lines:
        raise SystemExit(f"{task} failed:\n{result.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    sys.stderr.write(f"{task}: {json.dumps(found)}\n")
    return found


def is_right(first: dict[str, Any], second: dict[str, Any], served: dict[str, Any], tuned: dict[str, Any]) -> bool:
    """Whether records were measured and verified, and every call was looked up in a capture, remembered, and gave what it must."""
    return (
        bool(served)
        and first["tuned_count"] > 0
        and second["tuned_count"] == 0
        and second["verified_count"] > 0
        and all(
            row["remembered"] == 1
            and not row["misses"]
            and row["first_graph_is_close_to_eager"]
            and row["later_graph_equals_eager"]
            and row["output_is_finite"]
            and row["look_ups"] > REMEMBERED_CALLS
            and row["allocations_in_look_ups"] == 0
            for row in served.values()
        )
        and all(row["tuned_count"] == 0 and row["graph_is_close_to_eager"] for row in tuned.values())
    )


TASKS: dict[str, Callable[[str], dict[str, Any]]] = {"tune": tune, "serve": serve, "tune_inside": tune_inside}


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        sys.stdout.write("RESULT " + json.dumps(TASKS[sys.argv[2]](sys.argv[3])) + "\n")
        return
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as empty:
        first, second = spawn("tune", root), spawn("tune", root)
        served, inside = spawn("serve", root), spawn("tune_inside", empty)
    right = is_right(first, second, served, inside)
    found = {"machine": machine(), "tuning": first, "verifying": second, "serving": served, "tuning_inside": inside, "is_right": right}
    document = json.dumps(found, indent=2)
    sys.stdout.write(document + "\n")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(document + "\n")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
