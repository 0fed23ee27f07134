// SPDX-License-Identifier: MIT
// Random tensors of the shapes that a problem asks for, and the argument structs made of them.
//
// The lengths of packed samples depend on the problem alone, so that inputs, outputs and gradients
// made apart fit each other.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "cli/conformance.h"
#include "cli/dtypes.h"

namespace vecina::cli {
namespace {

using Lengths = std::vector<std::array<int64_t, 3>>;

bool is_packed(const vecina_problem& p) { return p.lengths == VECINA_LENGTHS_PACKED; }
int64_t num_samples(const vecina_problem& p) { return is_packed(p) ? p.samples : p.batch; }
int head_dim_value(const vecina_problem& p) {
  return p.head_dim_value == 0 ? p.head_dim : p.head_dim_value;
}
int heads_kv(const vecina_problem& p) { return p.heads_kv == 0 ? p.heads : p.heads_kv; }
int64_t query_extent(const vecina_problem& p, int a) {
  return p.kind == VECINA_ATTENTION && p.query_extent[a] != 0 ? p.query_extent[a] : p.extent[a];
}
int64_t num_outputs(int64_t tokens, int64_t output_stride) {
  return (tokens + output_stride - 1) / output_stride;
}

// Sample 0 fills the extents; others are no smaller than their window, rarely empty.
Lengths draw_lengths(const vecina_problem& p, bool of_queries, Random& random) {
  Lengths lengths(static_cast<size_t>(num_samples(p)));
  for (size_t sample = 0; sample < lengths.size(); ++sample) {
    const bool is_empty = sample > 0 && random.chance(0.05);
    for (int a = 0; a < p.rank; ++a) {
      const int64_t extent = of_queries ? query_extent(p, a) : p.extent[a];
      const int64_t least = p.kind == VECINA_ATTENTION ? 1 : p.kernel_size[a] * p.dilation[a];
      const int64_t drawn = random.integer(std::min(least, extent), extent);
      lengths[sample][static_cast<size_t>(a)] = sample == 0 ? extent : is_empty ? 0 : drawn;
    }
  }
  return lengths;
}
Lengths packed_lengths(const vecina_problem& p, bool of_queries) {
  Random random(of_queries && p.kind == VECINA_ATTENTION ? 2 : 1);
  return draw_lengths(p, of_queries, random);
}

int64_t packed_tokens(const vecina_problem& p, bool of_queries, bool of_outputs) {
  int64_t total = 0;
  for (const auto& sample : packed_lengths(p, of_queries)) {
    int64_t tokens = 1;
    for (int a = 0; a < p.rank; ++a) {
      const int64_t length = sample[static_cast<size_t>(a)];
      tokens *= of_outputs ? num_outputs(length, p.output_stride[a]) : length;
    }
    total += tokens;
  }
  return total;
}

enum class Tokens { keys, queries, outputs };

// [batch, extents..., tail...], or [1, total, tail...] if packed.
std::vector<int64_t> shape_of(const vecina_problem& p, Tokens tokens,
                              std::initializer_list<int64_t> tail) {
  const bool of_queries = tokens != Tokens::keys, of_outputs = tokens == Tokens::outputs;
  std::vector<int64_t> shape = {p.batch};
  if (is_packed(p)) {
    shape.push_back(packed_tokens(p, of_queries, of_outputs));
  } else {
    for (int a = 0; a < p.rank; ++a) {
      const int64_t extent = of_queries ? query_extent(p, a) : p.extent[a];
      shape.push_back(of_outputs ? num_outputs(extent, p.output_stride[a]) : extent);
    }
  }
  shape.insert(shape.end(), tail);
  return shape;
}

std::vector<int64_t> additional_shape(const vecina_problem& p, int head_dim) {
  return {num_samples(p), p.additional_tokens, heads_kv(p), head_dim};
}

std::vector<int64_t> bias_shape(const vecina_problem& p) {
  std::vector<int64_t> shape = {p.heads};
  for (int a = 0; a < p.rank; ++a) shape.push_back(2 * p.kernel_size[a] - 1);
  return shape;
}

// The same numbers with any number of threads; large tensors would take minutes with one.
void draw_normal(HostTensor& tensor, Random& random) {
  if (!tensor.given()) return;
  constexpr int64_t kLeastOfThread = 1 << 18;
  const int64_t size = tensor.size(), cores = std::thread::hardware_concurrency();
  const int64_t num_threads =
      std::clamp<int64_t>(size / kLeastOfThread, 1, std::max<int64_t>(cores, 1));
  const auto draw = [&](int64_t thread) {
    const int64_t begin = size * thread / num_threads, end = size * (thread + 1) / num_threads;
    Random here = random;
    here.skip(static_cast<uint64_t>(begin) * Random::kBitsOfNormal);
    for (int64_t i = begin; i < end; ++i) tensor.set(i, here.normal());
  };
  {
    std::vector<std::jthread> threads;
    for (int64_t thread = 1; thread < num_threads; ++thread) threads.emplace_back(draw, thread);
    draw(0);
  }
  random.skip(static_cast<uint64_t>(size) * Random::kBitsOfNormal);
}

HostTensor nan_tensor(const std::vector<int64_t>& shape, int32_t dtype, Placement placement) {
  HostTensor tensor(shape, dtype, placement);
  if (!placement.is_reserved) tensor.fill(std::numeric_limits<double>::quiet_NaN());
  return tensor;
}

HostTensor lengths_tensor(const vecina_problem& p, const Lengths& lengths, int32_t dtype) {
  HostTensor tensor({static_cast<int64_t>(lengths.size()), p.rank}, dtype);
  for (int64_t i = 0; i < tensor.size(); ++i) {
    tensor.set(i, static_cast<double>(
                      lengths[static_cast<size_t>(i / p.rank)][static_cast<size_t>(i % p.rank)]));
  }
  return tensor;
}

}  // namespace

Inputs make_inputs(const vecina_problem& p, Placement placement) {
  const auto tensor = [&](const std::vector<int64_t>& shape, int32_t dtype) {
    return HostTensor(shape, dtype, placement);
  };
  const int32_t query_key_dtype = p.query_key_dtype == 0 ? p.dtype : p.query_key_dtype;
  Inputs inputs;
  inputs.query = tensor(shape_of(p, Tokens::queries, {p.heads, p.head_dim}), query_key_dtype);
  inputs.key = tensor(shape_of(p, Tokens::keys, {heads_kv(p), p.head_dim}), query_key_dtype);
  inputs.value = tensor(shape_of(p, Tokens::keys, {heads_kv(p), head_dim_value(p)}), p.dtype);
  if (p.additional_tokens > 0) {
    inputs.additional_key = tensor(additional_shape(p, p.head_dim), query_key_dtype);
    inputs.additional_value = tensor(additional_shape(p, head_dim_value(p)), p.dtype);
  }
  if (p.has_bias) inputs.bias = tensor(bias_shape(p), lse_dtype(p.dtype));
  inputs.grad_output = tensor(shape_of(p, Tokens::outputs, {p.heads, head_dim_value(p)}), p.dtype);
  inputs.grad_lse = tensor(shape_of(p, Tokens::outputs, {p.heads}), lse_dtype(p.dtype));
  return inputs;
}

Inputs random_inputs(const vecina_problem& p, uint64_t seed, Placement placement) {
  Random random(seed);
  Inputs inputs = make_inputs(p, placement);
  const auto draw = [&](HostTensor& tensor) {
    if (!placement.is_reserved) draw_normal(tensor, random);
  };
  for (HostTensor* tensor : {&inputs.query, &inputs.key, &inputs.value, &inputs.additional_key,
                             &inputs.additional_value, &inputs.bias}) {
    draw(*tensor);
  }
  if (p.lengths != VECINA_LENGTHS_EQUAL) {
    const int32_t index_dtype = random.chance(0.5) ? VECINA_I32 : VECINA_I64;
    const auto lengths = [&](bool of_queries) {
      const Lengths drawn =
          is_packed(p) ? packed_lengths(p, of_queries) : draw_lengths(p, of_queries, random);
      return lengths_tensor(p, drawn, index_dtype);
    };
    inputs.lengths = lengths(false);
    if (p.kind == VECINA_ATTENTION) inputs.query_lengths = lengths(true);
  }
  draw(inputs.grad_output);
  draw(inputs.grad_lse);
  if (p.query_key_dtype == VECINA_E4M3 && seed % 2 == 1) {
    inputs.head_scale = HostTensor({p.heads}, lse_dtype(p.dtype), placement);
    for (int64_t head = 0; head < p.heads; ++head) {  // a plan reads them too
      inputs.head_scale.set(head, placement.is_reserved ? 1.0 : std::exp2(random.normal()));
    }
  }
  return inputs;
}

Outputs make_outputs(const vecina_problem& p, Placement placement) {
  const auto output_shape = shape_of(p, Tokens::outputs, {p.heads, head_dim_value(p)});
  const auto lse_shape = shape_of(p, Tokens::outputs, {p.heads});
  return {nan_tensor(output_shape, p.dtype, placement),
          nan_tensor(lse_shape, lse_dtype(p.dtype), placement)};
}

vecina_forward_args forward_args(const Inputs& inputs, const Outputs& outputs) {
  vecina_forward_args args = {};
  args.struct_size = sizeof(args);
  args.query = inputs.query.view();
  args.key = inputs.key.view();
  args.value = inputs.value.view();
  args.additional_key = inputs.additional_key.view();
  args.additional_value = inputs.additional_value.view();
  args.bias = inputs.bias.view();
  args.lengths = inputs.lengths.view();
  args.query_lengths = inputs.query_lengths.view();
  args.head_scale = inputs.head_scale.view();
  args.output = outputs.output.view();
  args.lse = outputs.lse.view();
  return args;
}

Gradients make_gradients(const vecina_problem& p, Placement placement) {
  const auto filled = [&](const std::vector<int64_t>& shape, int32_t dtype) {
    return nan_tensor(shape, dtype, placement);
  };
  Gradients gradients;
  gradients.query = filled(shape_of(p, Tokens::queries, {p.heads, p.head_dim}), p.dtype);
  gradients.key = filled(shape_of(p, Tokens::keys, {heads_kv(p), p.head_dim}), p.dtype);
  gradients.value = filled(shape_of(p, Tokens::keys, {heads_kv(p), head_dim_value(p)}), p.dtype);
  if (p.additional_tokens > 0) {
    gradients.additional_key = filled(additional_shape(p, p.head_dim), p.dtype);
    gradients.additional_value = filled(additional_shape(p, head_dim_value(p)), p.dtype);
  }
  if (p.has_bias) gradients.bias = filled(bias_shape(p), lse_dtype(p.dtype));
  return gradients;
}

vecina_backward_args backward_args(const Inputs& inputs, const Outputs& outputs,
                                   const Gradients& gradients) {
  const vecina_forward_args forward = forward_args(inputs, outputs);
  vecina_backward_args args = {};
  args.struct_size = sizeof(args);
  args.query = forward.query;
  args.key = forward.key;
  args.value = forward.value;
  args.additional_key = forward.additional_key;
  args.additional_value = forward.additional_value;
  args.bias = forward.bias;
  args.lengths = forward.lengths;
  args.query_lengths = forward.query_lengths;
  args.output = forward.output;
  args.lse = forward.lse;
  args.grad_output = inputs.grad_output.view();
  args.grad_lse = inputs.grad_lse.view();
  args.grad_query = gradients.query.view();
  args.grad_key = gradients.key.view();
  args.grad_value = gradients.value.view();
  args.grad_additional_key = gradients.additional_key.view();
  args.grad_additional_value = gradients.additional_value.view();
  args.grad_bias = gradients.bias.view();
  return args;
}

}  // namespace vecina::cli
