"""What an optimizer takes for one step over the adapters of Mistral-7B, rank 16 on all linear layers.

python scripts/bench/optimizers.py
"""

from time import perf_counter
from typing import Any, get_args

from apart import send, take

STEPS = 20


def measure(name: Any) -> dict[str, Any]:
    """Median step, and bytes of state for each trained parameter."""
    import torch

    from app.families import get_family
    from app.model.fast_step import STATE_BYTES
    from app.model.optimizer import build_optimizer
    from app.plan.shapes import shape_of

    family = get_family("mistral")
    shape = shape_of(family.config, family)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = [size for linear in shape.linears for size in ((16, linear.inputs), (linear.outputs, 16))] * shape.layers
    parameters = [torch.nn.Parameter(torch.randn(size, device=device)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = build_optimizer(name, parameters, lr=1e-5, weight_decay=0.0, device=device)
    times = []
    for _ in range(STEPS):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = perf_counter()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - begun)
    count = sum(parameter.numel() for parameter in parameters)
    return {
        "optimizer": name, "milliseconds": sorted(times[STEPS // 4 :])[(STEPS - STEPS // 4) // 2] * 1e3,
        "state_mib": STATE_BYTES[name] * count / 2**20, "parameters": count,
    }  # fmt: skip


def optimizer_table(rows: list[dict[str, Any]] | str) -> str:
    if isinstance(rows, str):
        return f"optimizers: {rows}"
    lines = [f"| optimizer, {rows[0]['parameters'] / 1e6:.1f} million parameters | step (ms) | state (MiB) |"]
    lines += ["|---|---|---|"]
    return "\n".join(
        lines + [f"| {row['optimizer']} | {row['milliseconds']:.2f} | {row['state_mib']:.0f} |" for row in rows]
    )


def main() -> None:
    given = take()
    from app.model.optimizer import OptimizerName

    rows = [measure(name) for name in get_args(OptimizerName)]
    print(optimizer_table(rows)) if given is None else send(rows)


if __name__ == "__main__":
    main()
