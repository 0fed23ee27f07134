# SPDX-License-Identifier: MIT
"""vecina.torch on a GPU: the CPU's values and gradients, on the caller's stream and in graphs."""

from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

import vecina.torch as vt  # noqa: E402

CALLS = {
    "1d": ([(2, 37, 4, 32)] * 3, dict(kernel_size=7)),
    "1d causal, dilation": ([(1, 40, 2, 12)] * 3, dict(kernel_size=4, dilation=3, is_causal=True)),
    "1d output_stride": ([(1, 29, 2, 16)] * 3, dict(kernel_size=5, output_stride=3)),
    "2d": ([(2, 17, 19, 4, 32)] * 3, dict(kernel_size=7)),
    "2d groups, head_dim_value, stride": (
        [(1, 12, 13, 8, 64), (1, 12, 13, 2, 64), (1, 12, 13, 2, 48)],
        dict(kernel_size=(6, 5), stride=(2, 3)),
    ),
    "3d": ([(1, 6, 7, 8, 2, 32)] * 3, dict(kernel_size=(3, 4, 5), is_causal=(True, False, False))),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def tensors(*shapes, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
            for shape in shapes]  # fmt: skip


def results(inputs, device, keywords, bias):
    """Output, lse and all gradients, on the host."""
    leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
    query, key, value, keys, values = leaves[:5]
    output, lse = vt.neighborhood_attention(
        query, key, value, additional_keys=keys, additional_values=values, return_lse=True,
        bias=leaves[5] if bias else None, **keywords,
    )  # fmt: skip
    (output.double().square().sum() + lse.double().sum()).backward()
    used = leaves if bias else leaves[:5]
    return [tensor.detach().cpu().double() for tensor in (output, lse, *(t.grad for t in used))]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_the_cpu(name, bias, dtype):
    shapes, keywords = CALLS[name]
    batch, heads_kv = shapes[0][0], shapes[1][-2]
    rank = len(shapes[0]) - 3
    kernel_size = keywords["kernel_size"]
    sizes = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,) * rank
    additional = [(batch, 2, heads_kv, shapes[1][-1]), (batch, 2, heads_kv, shapes[2][-1])]
    inputs = tensors(*shapes, *additional, dtype=dtype)
    bias_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    inputs += tensors((shapes[0][-2], *(2 * size - 1 for size in sizes)), dtype=bias_dtype, seed=1)
    ours = results(inputs, "cuda", keywords, bias)
    wanted = results(inputs, "cpu", keywords, bias)
    for mine, theirs in zip(ours, wanted):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


def test_dense_attention_and_merge():
    query, key, value = (t.cuda() for t in tensors(*[(2, 50, 4, 32)] * 3, dtype=torch.float32))
    output, lse = vt.attention(query, key, value, return_lse=True)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(t.double().transpose(1, 2) for t in (query, key, value))
    ).transpose(1, 2)
    torch.testing.assert_close(output.double(), wanted, rtol=0, atol=1e-5)
    halves = [vt.attention(query, key[:, part], value[:, part], return_lse=True)
              for part in (slice(0, 20), slice(20, 50))]  # fmt: skip
    merged, merged_lse = vt.merge_attentions([h[0] for h in halves], [h[1] for h in halves])
    torch.testing.assert_close(merged, output, rtol=0, atol=1e-5)
    torch.testing.assert_close(merged_lse, lse, rtol=0, atol=1e-5)


def test_views_of_one_packed_tensor():
    packed = tensors((2, 16, 16, 3, 4, 32), dtype=torch.float32)[0].cuda()
    views = packed.unbind(3)
    torch.testing.assert_close(
        vt.na2d(*views, 7), vt.na2d(*(view.contiguous() for view in views), 7), rtol=0, atol=0
    )


def test_runs_on_the_current_stream():
    stream = torch.cuda.Stream()
    inputs = [t.cuda() for t in tensors(*[(2, 32, 32, 4, 32)] * 3, dtype=torch.float32)]
    wanted = vt.na2d(*inputs, 7)
    doubled = [torch.zeros_like(t) for t in inputs]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # some 10 ms: a call on another stream would come too early
        for to, tensor in zip(doubled, inputs):
            to.copy_(tensor)
        output = vt.na2d(*doubled, 7)
    stream.synchronize()
    torch.testing.assert_close(output, wanted, rtol=0, atol=0)


def test_returns_before_the_gpu_is_done():
    inputs = [t.cuda() for t in tensors(*[(2, 32, 32, 4, 32)] * 3, dtype=torch.float32)]

    def calls():
        halves = [vt.na2d(*inputs, 7, return_lse=True) for _ in range(2)]
        merged = vt.merge_attentions([h[0] for h in halves], [h[1] for h in halves])
        return vt.na2d(*inputs, 7), *merged

    for _ in range(3):  # the first ones compile, load and plan
        wanted = calls()
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)  # some 500 ms
    found = calls()
    assert not torch.cuda.current_stream().query()  # nothing waited
    with torch.cuda.stream(side):
        beside = calls()
    side.synchronize()
    assert not torch.cuda.current_stream().query()  # nor did the other stream
    for mine, other, expected in zip(found, beside, wanted):
        torch.testing.assert_close(other, expected, rtol=0, atol=0)
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


def test_threads_share_a_device():
    inputs = [t.cuda() for t in tensors(*[(2, 20, 21, 4, 32)] * 3, dtype=torch.float32)]
    sizes = [3, 4, 5, 6, 7, 8, 9, 10]

    def gradients(size):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(vt.na2d(*leaves, size).square().sum(), leaves)

    def on_a_stream(size):
        with torch.cuda.stream(torch.cuda.Stream()):
            found = [gradients(size) for _ in range(20)]
            torch.cuda.current_stream().synchronize()
        return found

    torch.cuda.synchronize()
    with ThreadPoolExecutor(len(sizes)) as pool:  # plans and kernels are made at the same time
        found = list(pool.map(on_a_stream, sizes))
    for size, rounds in zip(sizes, found):
        wanted = gradients(size)
        for mine in rounds:
            for tensor, expected in zip(mine, wanted):
                torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_device_of_its_tensors():
    inputs = tensors(*[(2, 20, 21, 4, 32)] * 3, dtype=torch.float32)

    def results(device):
        leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
        output = vt.na2d(*leaves, 7)
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    assert torch.cuda.current_device() == 0
    for mine, wanted in zip(results("cuda:1"), results("cuda:0")):
        assert mine.device.index == 1
        torch.testing.assert_close(mine.cpu(), wanted.cpu(), rtol=0, atol=0)
    query, key, value = (t.cuda() for t in inputs)
    with pytest.raises(ValueError, match="must be on one"):
        vt.na2d(query, key.to("cuda:1"), value, 7)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices_with_streams_of_their_own():
    inputs = tensors(*[(2, 20, 21, 4, 32)] * 3, dtype=torch.bfloat16)

    def everything(device):
        leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
        parts = [vt.na2d(*leaves, size, return_lse=True) for size in (7, 4)]
        merged = vt.merge_attentions([p[0] for p in parts], [p[1] for p in parts])
        halves = vt.av(vt.qk(*leaves[:2], kernel_size=3).softmax(-1), leaves[2], kernel_size=3)
        loss = sum(t.double().square().sum() for t in (*merged, halves))
        return [*merged, halves, *torch.autograd.grad(loss, leaves)]

    wanted = [tensor.cpu() for tensor in everything("cuda:0")]

    def on_a_stream(device):
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream), torch.cuda.device(1 - device):  # the other one is current
            found = [everything(f"cuda:{device}") for _ in range(5)]
            stream.synchronize()
        return found

    for device in (1, 0):
        with torch.cuda.device(1 - device):
            for mine, expected in zip(everything(f"cuda:{device}"), wanted):
                assert mine.device.index == device
                torch.testing.assert_close(mine.cpu(), expected, rtol=0, atol=0)
    with ThreadPoolExecutor(4) as pool:
        for rounds in pool.map(on_a_stream, [0, 1, 0, 1]):
            for found in rounds:
                for mine, expected in zip(found, wanted):
                    torch.testing.assert_close(mine.cpu(), expected, rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_graph_on_the_second_device():
    with torch.cuda.device(1):
        inputs = [t.cuda() for t in tensors(*[(2, 64, 4, 32)] * 3, dtype=torch.float32)]
        wanted = vt.na1d(*inputs, 7)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # else later ones use it too
            output = vt.na1d(*inputs, 7)
        output.zero_()
        graph.replay()
        torch.testing.assert_close(output, wanted, rtol=0, atol=0)
    assert torch.cuda.current_device() == 0


def test_is_captured_in_a_graph_with_its_gradients():
    shape = (2, 64, 4, 32)
    inputs = [t.cuda().requires_grad_() for t in tensors(*[shape] * 3, dtype=torch.float32)]
    fresh = [t.cuda() for t in tensors(*[shape] * 3, dtype=torch.float32, seed=7)]

    def step():
        parts = [vt.na1d(*inputs, size, return_lse=True) for size in (7, 12)]
        merged = vt.merge_attentions([p[0].detach() for p in parts], [p[1].detach() for p in parts])
        loss = sum(output.square().sum() + lse.sum() for output, lse in parts)
        return [*merged, *torch.autograd.grad(loss, inputs)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for values in (fresh, [t + 1 for t in fresh]):
        with torch.no_grad():
            for tensor, value in zip(inputs, values):
                tensor.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        for mine, wanted in zip(captured, step()):
            torch.testing.assert_close(mine, wanted, rtol=0, atol=0)


def test_compiles_with_cuda_graphs():
    shapes = [(2, 64, 4, 32)] * 3
    inputs = [t.cuda().requires_grad_() for t in tensors(*shapes, dtype=torch.float32)]

    def call(query, key, value):
        return vt.na1d(query * 2, key, value, 7).relu()

    def results(function, *arguments):
        output = function(*arguments)
        gradients = torch.autograd.grad(output.square().sum(), arguments)
        return [output.detach().clone(), *(g.clone() for g in gradients)]

    compiled = torch.compile(call, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):  # the first calls warm up and record, the last ones replay
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            for tensor, values in zip(inputs, tensors(*shapes, dtype=torch.float32, seed=seed)):
                tensor.copy_(values)
        for mine, wanted in zip(results(compiled, *inputs), results(call, *inputs)):
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-4)


def test_host_and_device_tensors_do_not_mix():
    query, key, value = tensors(*[(1, 9, 2, 8)] * 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="must be on one"):
        vt.na1d(query.cuda(), key, value, 3)


def with_gradients(call, inputs, device):
    """What a call of tensors on a device returns and its gradients, on the host."""
    leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
    found = call(*leaves)
    found = found if isinstance(found, tuple) else (found,)
    loss = sum(torch.where(t.isfinite(), t, 0).double().square().sum() for t in found)
    gradients = torch.autograd.grad(loss, leaves)
    return [tensor.detach().cpu().double() for tensor in (*found, *gradients)]


def assert_same_as_cpu(call, inputs, tolerance=2e-5):
    ours, wanted = (with_gradients(call, inputs, device) for device in ("cuda", "cpu"))
    for mine, theirs in zip(ours, wanted):
        scale = theirs[theirs.isfinite()].abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance * max(scale, 1.0))


def test_lengths_of_padded_samples():
    inputs = tensors(*[(3, 9, 11, 4, 32)] * 3, dtype=torch.float32)
    lengths = torch.tensor([[9, 11], [5, 7], [0, 4]])
    assert_same_as_cpu(
        lambda q, k, v: vt.na2d(q, k, v, (3, 4), lengths=lengths.to(q.device), return_lse=True),
        inputs,
    )


def test_packed_samples():
    lengths = torch.tensor([[4, 6], [5, 5], [3, 9]], dtype=torch.int32)
    tokens = int(lengths.prod(1).sum())
    inputs = tensors(*[(1, tokens, 2, 16)] * 3, dtype=torch.float32)
    assert_same_as_cpu(
        lambda q, k, v: vt.neighborhood_attention_varlen(q, k, v, lengths.to(q.device), 3), inputs
    )
    assert_same_as_cpu(
        lambda q, k, v: vt.attention_varlen(q, k, v, lengths.prod(1).to(q.device), True), inputs
    )


def test_lengths_lie_on_the_device():
    query, key, value = (t.cuda() for t in tensors(*[(2, 9, 2, 8)] * 3, dtype=torch.float32))
    with pytest.raises(ValueError, match="lengths is on device.*must be on one"):
        vt.na1d(query, key, value, 3, lengths=torch.tensor([[9], [5]]))


def test_lengths_that_fit_nothing_touch_nothing():
    query, key, value = (t.cuda() for t in tensors(*[(4, 9, 2, 8)] * 3, dtype=torch.float32))
    lengths = torch.tensor([[9], [2], [-7], [1000]], device="cuda")
    output, lse = vt.na1d(query, key, value, 3, lengths=lengths, return_lse=True)
    whole = vt.na1d(query, key, value, 3)
    torch.testing.assert_close(output[0], whole[0], rtol=0, atol=1e-5)
    assert not output[1:3].any() and (lse[1:3] == -torch.inf).all()  # smaller than the window
    torch.testing.assert_close(output[3], whole[3], rtol=0, atol=1e-5)  # 9 are there
    packed = [tensor.reshape(1, 36, 2, 8) for tensor in (query, key, value)]
    before = [tensor.clone() for tensor in packed]
    lengths = torch.tensor([20, 20], device="cuda")  # the tensors end in the second one
    output = vt.neighborhood_attention_varlen(*packed, lengths, 3, max_lengths=20)
    torch.testing.assert_close(
        output[:, :20], vt.na1d(*(t[:, :20] for t in packed), 3), rtol=0, atol=1e-5
    )
    for tensor, copy in zip(packed, before):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0)


def test_gradients_of_merging():
    shapes = [(2, 7, 4, 32)] * 3 + [(2, 7, 4)] * 3
    assert_same_as_cpu(
        lambda *parts: vt.merge_attentions(parts[:3], parts[3:]),
        tensors(*shapes, dtype=torch.float32),
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_two_halves(dtype):
    window = dict(kernel_size=(3, 4), dilation=(2, 1), is_causal=(True, False), right_aligned=True)
    inputs = tensors(
        (2, 9, 8, 4, 16), (2, 9, 8, 2, 16), (2, 9, 8, 2, 24), (2, 3, 2, 16), (2, 3, 2, 24),
        dtype=dtype,
    )  # fmt: skip
    bias_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    inputs += tensors((4, 5, 7), dtype=bias_dtype, seed=1)

    def call(query, key, value, keys, values, bias):
        logits = vt.qk(query, key, additional_keys=keys, bias=bias, **window)
        return logits, vt.av(logits.softmax(-1), value, additional_values=values, **window)

    assert_same_as_cpu(call, inputs, TOLERANCE[dtype])


def test_packed_sequences_of_natten():
    """With tokens after the last sequence, and sequences without queries or keys."""
    from vecina.compat import natten

    bounds = [0, 4, 4, 6, 8], [0, 3, 5, 5, 9]

    def call(query, key, value):
        sums = [torch.tensor(b, dtype=torch.int32, device=query.device) for b in bounds]
        return natten.attention(
            query, key, value, True, cumulative_seqlen_Q=sums[0], cumulative_seqlen_KV=sums[1],
            max_seqlen_Q=4, max_seqlen_KV=4, return_lse=True,
        )  # fmt: skip

    inputs = tensors((1, 9, 4, 32), *[(1, 11, 2, 32)] * 2, dtype=torch.float32)
    output, lse = call(*(t.cuda() for t in inputs))
    blank = [4, 5, 8]
    assert not output[:, blank].any() and torch.isneginf(lse[:, blank]).all()
    assert_same_as_cpu(call, inputs)


def test_packed_sequences_of_natten_in_a_graph():
    from vecina.compat import natten

    query, key, value = (t.cuda() for t in tensors(*[(1, 40, 4, 32)] * 3, dtype=torch.float32))
    sums = torch.tensor([0, 12, 36], dtype=torch.int32, device="cuda")  # four tokens are in none
    packed = dict(
        cumulative_seqlen_Q=sums, cumulative_seqlen_KV=sums, max_seqlen_Q=32, max_seqlen_KV=32
    )
    for _ in range(3):  # the first ones compile, load and plan
        wanted = natten.attention(query, key, value, **packed)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = natten.attention(query, key, value, **packed)
    sums[1] = 20  # read when it runs
    graph.replay()
    torch.testing.assert_close(
        output, natten.attention(query, key, value, **packed), rtol=0, atol=1e-6
    )
    assert not torch.equal(output, wanted)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_varlen_of_the_ports(rank):
    from vecina.compat import natten_mps

    lengths = torch.tensor([[9, 7, 5], [6, 3, 4], [3, 7, 3]])[:, :rank]
    lengths = lengths[:, 0] if rank == 1 else lengths  # on the host: they are brought
    inputs = tensors(*[(3, *(9, 7, 5)[:rank], 4, 16)] * 3, dtype=torch.float32)
    function = getattr(natten_mps, f"na{rank}d_varlen")
    assert_same_as_cpu(lambda q, k, v: function(q, k, v, lengths, 3), inputs)


def test_merging_of_natten():
    from vecina.compat import natten, natten_mps

    shapes = [(2, 7, 4, 32)] * 3 + [(2, 7, 4)] * 3
    for merge in (natten.merge_attentions, natten_mps.merge_attentions):
        assert_same_as_cpu(
            lambda *parts: merge(list(parts[:3]), list(parts[3:])),
            tensors(*shapes, dtype=torch.float32),
        )


def test_the_reference_of_natten_takes_tensors_of_a_device():
    from vecina.compat import natten

    inputs = [t.cuda().requires_grad_() for t in tensors(*[(1, 9, 2, 8)] * 3, dtype=torch.float32)]
    more = [t.cuda() for t in tensors(*[(1, 2, 2, 8)] * 2, dtype=torch.float32)]
    found, lse = natten.backends.reference.na1d_reference(
        *inputs, 3, additional_keys=more[0], additional_values=more[1], return_lse=True
    )
    wanted = natten.na1d(*inputs, 3, additional_keys=more[0], additional_values=more[1])
    assert found.is_cuda and lse.is_cuda
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    for mine, theirs in zip(*(torch.autograd.grad(o.sum(), inputs) for o in (found, wanted))):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("in_graph", [False, True])
def test_the_benchmark_times_a_gpu(in_graph):
    from vecina import bench
    from vecina.bench import rows

    chosen = rows.rows(["fmha", "merge"])
    found, _ = bench.measure(["cuda", "sdpa"], chosen, 1, 3, "cuda", in_graph)
    for result in found:
        assert result.times["cuda"].min_ms > 0
        assert (result.times["sdpa"] is None) == (result.row.kind == "merge")


def test_gradients_added_in_any_order(monkeypatch):
    inputs = [t.cuda().requires_grad_()
              for t in tensors(*[(1, 20, 24, 2, 128)] * 3, dtype=torch.bfloat16)]  # fmt: skip
    output = vt.na2d(*inputs, (13, 11))
    gradient = torch.randn_like(output)
    new_memory, workspaces = vt._new_memory, []

    def noted_memory(query, bytes):
        workspaces.append(bytes)
        return new_memory(query, bytes)

    monkeypatch.setattr(vt, "_new_memory", noted_memory)

    def gradients():
        return torch.autograd.grad(output, inputs, gradient, retain_graph=True)

    wanted = gradients()
    vt.allow_nondeterministic_backward()
    try:
        found = gradients()
    finally:
        vt.allow_nondeterministic_backward(False)
    # Four numbers of each query, and where queries are added to a sum for each element.
    queries = 20 * 24 * 2
    assert workspaces == [queries * 16, queries * (16 + 4 * 128)]
    for mine, theirs in zip(found, wanted):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0.02 * scale)
    for mine, theirs in zip(gradients(), wanted):
        assert torch.equal(mine, theirs)


@pytest.mark.skipif(torch.cuda.get_device_capability() != (9, 0), reason="Hopper's kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_query_and_key_in_e4m3(dtype):
    query, key, value = tensors(*[(1, 20, 24, 2, 64)] * 3, dtype=dtype)
    given = [query.to(torch.float8_e4m3fn), key.to(torch.float8_e4m3fn), value]
    scale = torch.tensor([0.5, 1.5])
    for _ in range(3):  # the last ones with a held plan
        scale *= 1.25
        wanted = vt.na2d(*given, 7, head_scale=scale, return_lse=True, backend="reference")
        found = vt.na2d(*(t.cuda() for t in given), 7, head_scale=scale.cuda(), return_lse=True)
        for mine, theirs in zip(found, wanted):
            torch.testing.assert_close(mine.cpu(), theirs, rtol=0.02, atol=0.02)
