"""Time to restore one 512 px face: the compact restorer and GFPGAN v1.4's network, on the same cores.

    python -m benchmarks.serving --json serving.json

Ours is timed as it is served: `load_runtime` on the exported ONNX file, with padding, checks and clamping. GFPGAN has
random weights, which does not change its speed, and is timed as the bare network call, in onnxruntime and in torch; the
faster of the two counts. Calls alternate, so that other load on the machine meets both alike; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from restorers.export import export_onnx
from restorers.runtime import load_runtime
from restorers.zoo import load_restorer

SIDE = 512
Call = Callable[[], object]


class GfpganV14(nn.Module):
    """GFPGAN v1.4's network at its published size, random weights; image in `[0, 1]` -> image in `[0, 1]`."""

    def __init__(self) -> None:
        super().__init__()
        from spandrel.architectures.GFPGAN import GFPGAN

        self.net = GFPGAN(out_size=SIDE, channel_multiplier=2, different_w=True, input_is_latent=True, sft_half=True)

    def forward(self, image: Tensor) -> Tensor:
        restored: Tensor = self.net(image * 2 - 1, return_rgb=False, randomize_noise=False)[0]
        return (restored + 1) / 2


def ours(image: Tensor, restorer: str, folder: Path) -> Call:
    """The compact restorer as it is served from an ONNX file."""
    loaded = load_restorer(restorer)
    path = folder / "restorer.onnx"
    export_onnx(loaded.module, path, loaded.spec.multiple_of, loaded.spec.minimum)
    serve = load_runtime(path)
    return lambda: serve(image)


def gfpgan_onnx(net: nn.Module, image: Tensor, folder: Path, threads: int) -> Call:
    """GFPGAN through onnxruntime; the export is checked against torch."""
    path = folder / "gfpgan.onnx"
    program = torch.onnx.export(net, (image,), dynamo=True, input_names=["image"], verbose=False)
    if program is None:
        raise RuntimeError("torch returned no ONNX program for GFPGAN")
    program.save(str(path), external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"image": image.numpy()}
    with torch.inference_mode():
        difference = float((torch.from_numpy(session.run(None, feed)[0]) - net(image)).abs().max())
    if not difference < 1e-2:
        raise RuntimeError(f"GFPGAN's ONNX file differs from torch by {difference:.2g}: the timing would mean nothing")
    return lambda: session.run(None, feed)


def gfpgan_torch(net: nn.Module, image: Tensor) -> Call:
    """GFPGAN in torch, eval mode, without gradients."""

    def call() -> object:
        with torch.inference_mode():
            return net(image)

    return call


def seconds(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """Median wall time of each call in a steady state: in turn, `repeats` calls of each after one to warm up, twice."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2):
        for name, call in calls.items():
            call()
            for _ in range(repeats):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(restorer: str, threads: int, repeats: int) -> dict[str, object]:
    """All timings and `speedup_over_gfpgan`."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    image = torch.rand(1, 3, SIDE, SIDE, generator=generator)
    net = GfpganV14().eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls = {"ours": ours(image, restorer, folder), "gfpgan_torch": gfpgan_torch(net, image)}
        note = ""
        try:
            calls["gfpgan_onnxruntime"] = gfpgan_onnx(net, image, folder, threads)
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            note = f"GFPGAN in torch only, its ONNX export failed: {str(error).splitlines()[0]}"
        medians = seconds(calls, repeats)
    rivals = {name: value for name, value in medians.items() if name != "ours"}
    fastest = min(rivals, key=lambda name: rivals[name])
    return {
        "speedup_over_gfpgan": rivals[fastest] / medians["ours"],
        "compared_with": fastest,
        "seconds": medians,
        "side": SIDE,
        "threads": threads,
        "repeats": repeats,
        "restorer": restorer,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "note": note,
    }


def main() -> None:
    """Measures, prints a table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--restorer", default="compact", help="name in the zoo or file of weights (default: compact)")
    parser.add_argument("--threads", type=int, default=2, help="threads for both (default: 2)")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each (default: 7)")
    options = parser.parse_args()
    result = measure(options.restorer, options.threads, options.repeats)
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, value in result["seconds"].items():  # type: ignore[attr-defined]
        print(f"{name:20} {1000 * value:9.1f} ms")
    print(f"speedup over GFPGAN ({result['compared_with']}): {result['speedup_over_gfpgan']:.1f}x")
    if result["note"]:
        print(result["note"])


if __name__ == "__main__":
    main()
