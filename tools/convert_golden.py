#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Turns golden vectors (npz: NATTEN's and natten-mps's own results) into tests/golden.

Usage: convert_golden.py SOURCE [DESTINATION]. Needs numpy; the tests need neither numpy nor SOURCE.
What is kept, what is left out and why: tests/golden/README.md.
"""
import json
import pathlib
import sys

import numpy as np

# A case above this size keeps its first sample and head only: heads and samples are independent of
# each other. Cases about head groups (heads_kv < heads) keep them all.
KEEP_WHOLE_BYTES = 45_000

NAMES = {
    "q": "query", "k": "key", "v": "value", "dout": "grad_output", "out": "output", "lse": "lse",
    "dq": "grad_query", "dk": "grad_key", "dv": "grad_value",
    "d_q": "grad_query", "d_k": "grad_key", "d_v": "grad_value", "out1": "lse",
    "additional_k": "additional_key", "additional_v": "additional_value",
    "d_additional_k": "grad_additional_key", "d_additional_v": "grad_additional_value",
}
# Gradients that other cases check as well, left out to keep the folder small.
FORWARD_ONLY = {"28_1d_L256_d32"}
LEFT_OUT = {
    "mps12_1d_av": "weights that no softmax made: the C interface has no split av",
}


def by_axis(values):
    """(7, 7) -> 7, (3, 5) -> 3x5, as the problem line writes it."""
    values = [int(v) for v in values]
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


def problem_line(shape, kernel_size, arrays, *, stride=(1,), output_stride=(1,), dilation=(1,),
                 causal=(False,), scale=None, bias=False, lengths=""):
    """The canonical line of a case; sizes come from its arrays, defaults are left out."""
    query, key, value = arrays["query"], arrays["key"], arrays["value"]
    batch, heads, head_dim = query.shape[0], query.shape[-2], query.shape[-1]
    words = [f"{len(shape)}d", "x".join(map(str, shape)), "kernel_size", by_axis(kernel_size)]
    for name, values in (("stride", stride), ("output_stride", output_stride),
                         ("dilation", dilation)):
        if any(v != 1 for v in values):
            words += [name, by_axis(values)]
    if any(causal):
        words += ["causal"] if all(causal) else ["causal", "x".join(str(int(c)) for c in causal)]
    for name, number, default in (("batch", batch, 1), ("heads", heads, 1),
                                  ("heads_kv", key.shape[-2], heads), ("head_dim", head_dim, 1),
                                  ("head_dim_value", value.shape[-1], head_dim)):
        if number != default:
            words += [name, str(number)]
    if "additional_key" in arrays:
        words += ["additional", str(arrays["additional_key"].shape[1])]
    if scale is not None and abs(scale - head_dim**-0.5) > 1e-15:
        words += ["scale", repr(float(scale)).removesuffix(".0")]
    if bias:
        words += ["bias"]
    if lengths:
        words += ["lengths", lengths]
    return " ".join(words)


def first_head_if_large(arrays):
    """The first sample and first head of every array, if all are too many bytes together."""
    if sum(array.size * 4 for array in arrays.values()) <= KEEP_WHOLE_BYTES:
        return arrays
    return {name: array if name == "mask_bits" else
            np.take(array[:1], [0], axis=array.ndim - (1 if "lse" in name else 2))
            for name, array in arrays.items()}


def natten_case(case, arrays):
    arrays = {NAMES.get(name, name): array for name, array in arrays.items()}
    if case["id"] in FORWARD_ONLY:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("grad_")}
    if case["heads"] == case["heads_kv"]:
        arrays = first_head_if_large(arrays)
    line = problem_line(case["shape"], case["kernel_size"], arrays, stride=case["stride"],
                        dilation=case["dilation"], causal=case["is_causal"], scale=case["scale"])
    return line, arrays


def tuple_of(value, rank):
    return tuple(value) if isinstance(value, list) else (value,) * rank


def windows(shape, kernel_size, dilation):
    """[tokens, slots] -> flat key index, for odd non-causal windows: C.1 and C.2 of the text."""
    per_axis = []
    for length, size, step in zip(shape, kernel_size, dilation):
        rows = []
        for token in range(length):
            group, position = token % step, token // step
            members = len(range(group, length, step))
            begin = min(max(position - size // 2, 0), members - size)
            rows.append([(begin + slot) * step + group for slot in range(size)])
        per_axis.append(np.array(rows))
    keys = np.zeros((1, 1), int)
    for axis, rows in enumerate(per_axis):
        keys = (keys[:, None, :, None] * shape[axis] + rows[None, :, None, :]).reshape(
            keys.shape[0] * rows.shape[0], -1)
    return keys


def split_case(case, arrays, rank):
    """Logits of a split qk as an attention problem: each key's value is its own unit vector, so
    output holds the softmax of the logits; grad_output and grad_lse are chosen so that the gradient
    of the logits is the one that was given (dS = P (dP - rowsum(P dP) + grad_lse))."""
    params = case["params"]
    heads_first = "heads-first" in params["op"]
    if heads_first:
        arrays = {name: array if name in ("rpb", "d_rpb") else np.moveaxis(array, 1, -2)
                  for name, array in arrays.items()}
    shape = arrays["q"].shape[1:1 + rank]
    heads, tokens = arrays["q"].shape[-2], int(np.prod(shape))
    kernel_size = tuple_of(params["kernel_size"], rank)
    dilation = tuple_of(params.get("dilation", 1), rank)
    keys = windows(shape, kernel_size, dilation)
    logits = arrays["out"].astype(np.float64).reshape(1, tokens, heads, -1)
    grad_logits = arrays["dout"].astype(np.float64).reshape(logits.shape)
    top = logits.max(-1, keepdims=True)
    lse = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    weights = np.exp(logits - lse[..., None])

    def spread(slots):  # window slots -> all keys
        full = np.zeros((1, tokens, heads, tokens))
        for token in range(tokens):
            full[:, token, :, keys[token]] = np.moveaxis(slots[:, token], -1, 0)
        return full.reshape(1, *shape, heads, tokens)

    unit = np.broadcast_to(np.eye(tokens)[:, None, :], (tokens, heads, tokens))
    result = {
        "query": arrays["q"], "key": arrays["k"], "value": unit.reshape(1, *shape, heads, tokens),
        "output": spread(weights), "lse": lse.reshape(1, *shape, heads),
        "grad_output": spread(grad_logits / weights),
        "grad_lse": grad_logits.sum(-1).reshape(1, *shape, heads),
        "grad_query": arrays["d_q"], "grad_key": arrays["d_k"],
    }
    if "rpb" in arrays:
        result["bias"], result["grad_bias"] = arrays["rpb"], arrays["d_rpb"]
    else:
        result = first_head_if_large(result)
    # natten-mps's split qk is unscaled by default (semantics: top trap 2).
    line = problem_line(shape, kernel_size, result, dilation=dilation, scale=1.0,
                        bias="rpb" in arrays)
    return line, result


def mps_case(case, arrays):
    params = case["params"]
    rank = 2 if "2d" in params["op"] else 1
    if "qk" in params["op"]:
        return split_case(case, arrays, rank)
    lengths = arrays.pop("seq_lens", arrays.pop("spatial_sizes", None))
    arrays = {NAMES[name]: array for name, array in arrays.items()}
    if lengths is not None:
        arrays["lengths"] = lengths.reshape(-1, rank).astype(np.int32)
    shape = arrays["query"].shape[1:1 + rank]
    line = problem_line(shape, tuple_of(params["kernel_size"], rank), arrays,
                        output_stride=tuple_of(params.get("stride", 1), rank),
                        dilation=tuple_of(params.get("dilation", 1), rank),
                        causal=tuple_of(params.get("is_causal", False), rank),
                        lengths="padded" if lengths is not None else "")
    return line, arrays


def store(folder, arrays):
    """One .npy an array; float32, but what bfloat16 holds exactly as its upper 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in sorted(arrays.items()):
        if array.dtype.kind == "f":
            array = np.ascontiguousarray(array, np.float32)
            words = array.view(np.uint32)
            if name in ("query", "key", "value", "grad_output", "additional_key",
                        "additional_value") and not (words & 0xFFFF).any():
                array = (words >> 16).astype(np.uint16)
        np.save(folder / f"{name}.npy", array)


def main(source, destination):
    index = json.loads((source / "index.json").read_text())
    cases = []
    for group, convert in (("natten_problems", natten_case), ("natten_mps_cases", mps_case)):
        for case in index[group]:
            if case["id"] in LEFT_OUT:
                continue
            name = case["id"] if case["id"].startswith("mps") else "natten" + case["id"]
            with np.load(source / case["file"]) as archive:
                line, arrays = convert(case, {n: archive[n] for n in archive.files})
            store(destination / name, arrays)
            cases.append({"name": name, "problem": line, "source": case["source"],
                          "arrays": sorted(arrays)})
    text = ",\n".join("  " + json.dumps(case) for case in cases)
    (destination / "index.json").write_text(f'{{"cases": [\n{text}\n]}}\n')
    total = sum(file.stat().st_size for file in destination.rglob("*.npy"))
    print(f"{len(cases)} cases, {total / 1e6:.2f} MB; left out: {', '.join(LEFT_OUT)}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    here = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]) if len(sys.argv) == 3 else here)
