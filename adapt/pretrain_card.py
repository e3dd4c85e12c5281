"""The model card of a network that `adapt pretrain` has trained."""

from __future__ import annotations

from typing import Any

PURPOSES = {
    "compact": "The restorer that ships: degraded photo in, restored photo out, at its own pixels.",
    "removal": "Degradation removal: conditions the prior, gives perceptual features and the judge's quality score.",
    "prior": "Unconditional denoiser of face latents: draws clean faces and refines restored ones.",
    "control": "IRControlNet, and the decoder it steers: what is behind a cleaned photo, given its latent.",
}


def card(name: str, record: dict[str, Any]) -> str:
    """The model card of one network."""
    plan, losses = record["plan"], record["losses"]
    terms = [term for term in losses[-1] if term != "step"]
    scored = [row for row in losses if row.keys() == losses[-1].keys()]
    picked = scored[:: max(1, len(scored) // 10)]
    lines = [
        f"# {name}",
        "",
        PURPOSES[name],
        "",
        f"- parameters: {record['parameters']:,}, stored in float16",
        f"- data: {record['data']}, mirrored at random",
        f"- training: {plan['steps']} steps of {record['batch']} images, peak learning rate {plan['learning_rate']}, "
        f"seed {plan['seed']}, AdamW, EMA {plan['ema_decay']}, precision {record['precision']}, "
        f"on {record['hardware']}",
        f"- again: `{record['command']}`",
        "- validation on images that were held out: "
        + ", ".join(f"{key} {value:.4g}" for key, value in record["scores"].items()),
        "- known bias: it knows the kind of images it was trained on; other domains need weights of their own",
        "",
        f"| step | {' | '.join(terms)} |",
        "|" + "--:|" * (len(terms) + 1),
    ]
    lines += [f"| {row['step']:.0f} | " + " | ".join(f"{row[term]:.4f}" for term in terms) + " |" for row in picked]
    return "\n".join(lines) + "\n"
