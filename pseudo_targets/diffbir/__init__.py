"""DiffBIR (Lin et al. 2024) at its published sizes: published files, networks, sampling.

`load_prior("diffbir-v2.1")` reads the files in `$ADAPT_CACHE/diffbir` (default `~/.cache/adapt/diffbir`), where `adapt
weights fetch diffbir-v2.1` puts them; loading downloads nothing.

| prior | files |
|---|---|
| `diffbir-v2.1` | `sd2.1-base-zsnr-laionaes5.ckpt` and `DiffBIR_v2.1.pt` |
| `diffbir-v2` | `v2-1_512-ema-pruned.ckpt` and `v2.pth` |
| `diffbir-v1` | `v2-1_512-ema-pruned.ckpt` and `v1_face.pth`, or `face_full_v1.ckpt` alone |
| `diffbir-v1-general` | `v2-1_512-ema-pruned.ckpt` and `v1_general.pth`, or `general_full_v1.ckpt` alone |

Stage 1 of each is in `cleaners`. Prompts with words also need Stable Diffusion 2.1's `tokenizer` folder there
(`adapt weights fetch sd21-tokenizer`).

Each may also be a `.safetensors` file of the same stem. The first load converts them, which needs transformers and
memory for the whole of them, and stores the result beside them; later loads need neither the files nor transformers.
"""
