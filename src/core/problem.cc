// SPDX-License-Identifier: MIT
// The rules of a problem, each with its sentence: what was given, what is allowed, the way out.
#include "core/problem.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include "core/tensor.h"

namespace vecina::internal {
namespace {

// window.h computes in int; a quarter of its range leaves room for its sums.
constexpr int64_t kMaxExtent = int64_t{1} << 29;
constexpr uint32_t kKnownFlags = VECINA_ALLOW_TF32 | VECINA_NONDETERMINISTIC_BACKWARD;

Status check_enums(const vecina_problem& p) {
  if (p.kind != VECINA_NEIGHBORHOOD && p.kind != VECINA_ATTENTION) {
    return invalid(fmt::format("kind {} is unknown; 0 (neighborhood) or 1 (attention).", p.kind));
  }
  if (p.rank < 1 || p.rank > 3) {
    return invalid(fmt::format("rank {} is not 1, 2 or 3.", p.rank));
  }
  if (p.kind == VECINA_ATTENTION && p.rank != 1) {
    return invalid(fmt::format(
        "attention has rank 1, not {}. Flatten the axes, or use a neighborhood problem whose "
        "kernel_size is the extent.",
        p.rank));
  }
  const DtypeRow* row = dtype_row(p.dtype);
  if (row == nullptr || !row->is_float) {
    return invalid(fmt::format("dtype {} ({}) is not one of f32, f64, f16, bf16.", p.dtype,
                               dtype_name(p.dtype)));
  }
  for (const auto& [name, value] :
       {std::pair{"has_scale", p.has_scale}, {"has_bias", p.has_bias}}) {
    if (value != 0 && value != 1) return invalid(fmt::format("{} is {}; 0 or 1.", name, value));
  }
  if (p.flags & ~kKnownFlags) {
    return invalid(fmt::format("flags {:#x} holds unknown bits {:#x}; known are {:#x}.", p.flags,
                               p.flags & ~kKnownFlags, kKnownFlags));
  }
  if (p.query_key_dtype != 0 && p.query_key_dtype != p.dtype && p.query_key_dtype != VECINA_E4M3) {
    return invalid(
        fmt::format("query_key_dtype {} ({}) is not 0 (as dtype), dtype's {} ({}) or {} (e4m3).",
                    p.query_key_dtype, dtype_name(p.query_key_dtype), p.dtype, dtype_name(p.dtype),
                    static_cast<int>(VECINA_E4M3)));
  }
  return {};
}

// Softmax is computed in powers of two: scale times log2(e) is a number of the type of the sums.
Status check_scale(const vecina_problem& p) {
  if (!p.has_scale) return {};
  if (!std::isfinite(p.scale)) return invalid(fmt::format("scale {} is not finite.", p.scale));
  constexpr double kMost = 1.24e308, kMostOfFloats = 2.35e38;
  static_assert(kMostOfFloats * std::numbers::log2e < std::numeric_limits<float>::max());
  static_assert(kMost * std::numbers::log2e < std::numeric_limits<double>::max());
  const double most = p.dtype == VECINA_F64 ? kMost : kMostOfFloats;
  if (std::abs(p.scale) <= most) return {};
  return invalid(
      fmt::format("scale {} is not within -{} and {}, beyond which {} problems have no logits.",
                  p.scale, most, most, dtype_name(p.dtype)));
}

Status check_sizes(const vecina_problem& p) {
  if (p.batch < 0) return invalid(fmt::format("batch {} is negative; 0 or more.", p.batch));
  if (p.heads < 1) return invalid(fmt::format("heads {} is less than 1.", p.heads));
  const int heads_kv = p.heads_kv == 0 ? p.heads : p.heads_kv;
  if (heads_kv < 1 || p.heads % heads_kv != 0) {
    return invalid(fmt::format(
        "heads {} is not a multiple of heads_kv {}. Each key head serves the same number of query "
        "heads.",
        p.heads, heads_kv));
  }
  if (p.head_dim < 1) return invalid(fmt::format("head_dim {} is less than 1.", p.head_dim));
  if (p.head_dim_value < 0) {
    return invalid(fmt::format("head_dim_value {} is negative; 0 stands for head_dim ({}).",
                               p.head_dim_value, p.head_dim));
  }
  if (p.additional_tokens < 0 || p.additional_tokens > kMaxExtent) {
    return invalid(fmt::format("additional_tokens {} is not within 0 and {}.", p.additional_tokens,
                               kMaxExtent));
  }
  return check_scale(p);
}

Status check_lengths(const vecina_problem& p) {
  switch (p.lengths) {
    case VECINA_LENGTHS_EQUAL:
    case VECINA_LENGTHS_PADDED:
      if (p.samples != 0) {
        return invalid(
            fmt::format("samples {} is given, but lengths are not packed; use batch.", p.samples));
      }
      return {};
    case VECINA_LENGTHS_PACKED:
      if (p.samples < 1) {
        return invalid(fmt::format("packed lengths need samples of 1 or more, not {}.", p.samples));
      }
      if (p.batch != 1) {
        return invalid(fmt::format(
            "packed lengths need batch 1, not {}: the samples lie one after another.", p.batch));
      }
      return {};
    default:
      return invalid(
          fmt::format("lengths {} is unknown; 0 (equal), 1 (padded) or 2 (packed).", p.lengths));
  }
}

Status check_window(const vecina_problem& p, int a) {
  const int64_t extent = p.extent[a], kernel_size = p.kernel_size[a], stride = p.stride[a];
  if (p.query_extent[a] != 0 && p.query_extent[a] != extent) {
    return invalid(fmt::format(
        "query_extent {} of axis {} differs from extent {}. In neighborhood attention queries and "
        "keys share their axes; attention problems may differ.",
        p.query_extent[a], a, extent));
  }
  if (kernel_size < 1) {
    return invalid(fmt::format("kernel_size {} of axis {} is less than 1.", kernel_size, a));
  }
  if (p.dilation[a] < 1) {
    return invalid(fmt::format("dilation {} of axis {} is less than 1.", p.dilation[a], a));
  }
  if (kernel_size > extent || p.dilation[a] > extent || kernel_size * p.dilation[a] > extent) {
    return invalid(fmt::format(
        "kernel_size {} x dilation {} = {} exceeds the {} tokens of axis {}. Use a smaller "
        "kernel_size{} or dilation.",
        kernel_size, p.dilation[a],
        static_cast<double>(kernel_size) * static_cast<double>(p.dilation[a]), extent, a,
        p.dilation[a] <= extent ? fmt::format(" (at most {})", extent / p.dilation[a]) : ""));
  }
  if (stride < 1 || stride > kernel_size) {
    return invalid(fmt::format(
        "stride {} of axis {} is not within 1 and kernel_size {}; a larger one would leave queries "
        "outside their own window.",
        stride, a, kernel_size));
  }
  if (stride > 1 && p.output_stride[a] > 1) {
    return invalid(fmt::format(
        "stride {} and output_stride {} of axis {} both exceed 1; only one of them may.", stride,
        p.output_stride[a], a));
  }
  return {};
}

Status check_attention(const vecina_problem& p) {
  if (p.kernel_size[0] != 0 && p.kernel_size[0] != p.extent[0]) {
    return invalid(fmt::format(
        "attention has no kernel_size, but {} is given. Leave it 0, or use a neighborhood problem.",
        p.kernel_size[0]));
  }
  if (p.query_extent[0] < 0 || p.query_extent[0] > kMaxExtent) {
    return invalid(fmt::format("query_extent {} is not within 1 and {} (0 stands for extent).",
                               p.query_extent[0], kMaxExtent));
  }
  if (p.stride[0] != 1 || p.output_stride[0] != 1 || p.dilation[0] != 1) {
    return invalid(fmt::format(
        "attention has no stride, output_stride or dilation, but {}, {} and {} are given; each "
        "must be 1.",
        p.stride[0], p.output_stride[0], p.dilation[0]));
  }
  if (p.has_bias) {
    return invalid("attention has no relative position bias; use a neighborhood problem.");
  }
  return {};
}

Status check_axis(const vecina_problem& p, int a) {
  if (p.extent[a] < 1 || p.extent[a] > kMaxExtent) {
    return invalid(
        fmt::format("extent {} of axis {} is not within 1 and {}.", p.extent[a], a, kMaxExtent));
  }
  if (p.is_causal[a] != 0 && p.is_causal[a] != 1) {
    return invalid(fmt::format("is_causal {} of axis {} is not 0 or 1.", p.is_causal[a], a));
  }
  if (p.output_stride[a] < 1 || p.output_stride[a] > kMaxExtent) {
    return invalid(fmt::format("output_stride {} of axis {} is not within 1 and {}.",
                               p.output_stride[a], a, kMaxExtent));
  }
  return p.kind == VECINA_ATTENTION ? check_attention(p) : check_window(p, a);
}

// Byte sizes and offsets of every tensor must fit int64 with room for sums.
Status check_products(const vecina_problem& p) {
  const int head_dim = std::max({p.head_dim, p.head_dim_value, 1});
  const auto check = [&](const char* of, int64_t samples, double tokens, const char* what) {
    const double bytes =
        8.0 * static_cast<double>(std::max<int64_t>(samples, 1)) * p.heads * head_dim * tokens;
    if (bytes <= 0x1p60) return Status();
    return invalid(fmt::format(
        "the tensors of {} {} x heads {} x head_dim {} over {} hold about {:.1e} bytes; at most "
        "2^60 can be addressed.",
        of, samples, p.heads, head_dim, what, bytes));
  };
  double tokens = 1.0;
  for (int a = 0; a < p.rank; ++a) {
    tokens *= static_cast<double>(std::max(p.extent[a], p.query_extent[a]));
  }
  VECINA_RETURN_IF_ERROR(check("batch", p.batch, tokens, "these extents"));
  // Additional tokens have a row for each sample. Those of packed keys are summed with lengths.
  const bool is_packed = p.lengths == VECINA_LENGTHS_PACKED;
  return check(is_packed ? "samples" : "batch", is_packed ? p.samples : p.batch,
               static_cast<double>(p.additional_tokens), "so many additional tokens");
}

uint64_t mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2);
  return hash * 0xff51afd7ed558ccdu;
}

}  // namespace

vecina_problem default_problem(int rank) {
  vecina_problem problem = {};
  problem.struct_size = sizeof(problem);
  problem.rank = rank;
  problem.batch = 1;
  problem.heads = 1;
  for (int a = 0; a < 3; ++a) {
    problem.stride[a] = problem.output_stride[a] = problem.dilation[a] = 1;
  }
  return problem;
}

Status Problem::make(const vecina_problem& given, Problem* problem) {
  VECINA_RETURN_IF_ERROR(check_enums(given));
  VECINA_RETURN_IF_ERROR(check_sizes(given));
  VECINA_RETURN_IF_ERROR(check_lengths(given));
  for (int a = 0; a < given.rank; ++a) VECINA_RETURN_IF_ERROR(check_axis(given, a));
  VECINA_RETURN_IF_ERROR(check_products(given));

  Problem made;
  made.kind_ = static_cast<vecina_kind>(given.kind);
  made.rank_ = given.rank;
  made.batch_ = given.batch;
  made.heads_ = given.heads;
  made.heads_kv_ = given.heads_kv == 0 ? given.heads : given.heads_kv;
  made.head_dim_ = given.head_dim;
  made.head_dim_value_ = given.head_dim_value == 0 ? given.head_dim : given.head_dim_value;
  for (int a = 0; a < given.rank; ++a) {
    Axis& axis = made.axes_[static_cast<size_t>(a)];
    axis.extent = given.extent[a];
    axis.query_extent = given.query_extent[a] == 0 ? given.extent[a] : given.query_extent[a];
    axis.kernel_size = made.is_attention() ? given.extent[a] : given.kernel_size[a];
    axis.stride = given.stride[a];
    axis.output_stride = given.output_stride[a];
    axis.dilation = given.dilation[a];
    axis.is_causal = given.is_causal[a] != 0;
  }
  made.dtype_ = given.dtype;
  made.query_key_dtype_ = given.query_key_dtype == 0 ? given.dtype : given.query_key_dtype;
  made.additional_tokens_ = given.additional_tokens;
  made.has_scale_ = given.has_scale != 0;
  made.has_bias_ = given.has_bias != 0;
  // + 0.0: scales 0 and -0 are equal and must hash alike.
  made.scale_ =
      given.has_scale ? given.scale + 0.0 : 1.0 / std::sqrt(static_cast<double>(given.head_dim));
  made.lengths_ = static_cast<vecina_lengths>(given.lengths);
  made.samples_ = given.samples;
  made.flags_ = given.flags;
  *problem = made;
  return {};
}

vecina_problem Problem::to_c() const {
  vecina_problem p = {};
  p.struct_size = sizeof(p);
  p.kind = kind_;
  p.rank = rank_;
  p.batch = batch_;
  p.heads = heads_;
  p.heads_kv = heads_kv_;
  p.head_dim = head_dim_;
  p.head_dim_value = head_dim_value_;
  for (int a = 0; a < 3; ++a) {
    const Axis& from = axis(a);
    p.extent[a] = a < rank_ ? from.extent : 0;
    p.query_extent[a] = is_attention() && a < rank_ ? from.query_extent : 0;
    p.kernel_size[a] = !is_attention() && a < rank_ ? from.kernel_size : 0;
    p.stride[a] = from.stride;
    p.output_stride[a] = from.output_stride;
    p.dilation[a] = from.dilation;
    p.is_causal[a] = from.is_causal;
  }
  p.dtype = dtype_;
  p.query_key_dtype = has_e4m3() ? query_key_dtype_ : 0;
  p.additional_tokens = additional_tokens_;
  p.has_scale = has_scale_;
  p.has_bias = has_bias_;
  p.scale = has_scale_ ? scale_ : 0.0;
  p.lengths = lengths_;
  p.samples = samples_;
  p.flags = flags_;
  return p;
}

uint64_t Problem::hash() const {
  const vecina_problem p = to_c();
  uint64_t hash = 0;
  for (int64_t value :
       {int64_t{p.kind}, int64_t{p.rank}, p.batch, int64_t{p.heads}, int64_t{p.heads_kv},
        int64_t{p.head_dim}, int64_t{p.head_dim_value}, int64_t{p.dtype}, p.additional_tokens,
        int64_t{p.has_scale}, int64_t{p.has_bias}, std::bit_cast<int64_t>(p.scale),
        int64_t{p.lengths}, int64_t{p.samples}, int64_t{p.flags}, int64_t{p.query_key_dtype}}) {
    hash = mix(hash, static_cast<uint64_t>(value));
  }
  for (int a = 0; a < rank_; ++a) {
    for (int64_t value : {p.extent[a], p.query_extent[a], p.kernel_size[a], p.stride[a],
                          p.output_stride[a], p.dilation[a], int64_t{p.is_causal[a]}}) {
      hash = mix(hash, static_cast<uint64_t>(value));
    }
  }
  return hash;
}

int64_t Problem::num_keys() const {
  int64_t count = 1;
  for (int a = 0; a < rank_; ++a) count *= axis(a).extent;
  return count;
}

int64_t Problem::num_queries() const {
  int64_t count = 1;
  for (int a = 0; a < rank_; ++a) count *= axis(a).num_queries();
  return count;
}

int64_t Problem::num_slots() const {
  int64_t count = 1;
  for (int a = 0; a < rank_; ++a) count *= axis(a).kernel_size;
  return count + additional_tokens_;
}

Problem Problem::of_sample(const std::array<int64_t, 3>& extent,
                           const std::array<int64_t, 3>& query_extent) const {
  Problem sample = *this;
  sample.batch_ = 1;
  sample.samples_ = 0;
  sample.lengths_ = VECINA_LENGTHS_EQUAL;
  for (size_t a = 0; a < static_cast<size_t>(rank_); ++a) {
    sample.axes_[a].extent = extent[a];
    sample.axes_[a].query_extent = query_extent[a];
    if (is_attention()) sample.axes_[a].kernel_size = extent[a];
  }
  return sample;
}

Problem Problem::of_full_samples(int64_t batch) const {
  Problem full = *this;
  full.batch_ = batch;
  full.samples_ = 0;
  full.lengths_ = VECINA_LENGTHS_EQUAL;
  return full;
}

Problem Problem::with_head_dim_value(int head_dim_value) const {
  Problem changed = *this;
  changed.head_dim_value_ = head_dim_value;
  return changed;
}

double Problem::visible_pairs() const {
  double pairs = 1.0, queries = 1.0;
  for (int a = 0; a < rank_; ++a) {
    double seen = 0.0;
    if (axis(a).is_causal) {
      for (int64_t i = 0; i < axis(a).num_queries(); ++i) {
        seen += static_cast<double>(window_of(*this, a, i).count);
      }
    } else {
      seen = static_cast<double>(axis(a).num_queries()) * static_cast<double>(axis(a).kernel_size);
    }
    pairs *= seen;
    queries *= static_cast<double>(axis(a).num_queries());
  }
  return pairs + queries * static_cast<double>(additional_tokens_);
}

double Problem::forward_flops() const {
  return 2.0 * visible_pairs() * (head_dim_ + head_dim_value_) * static_cast<double>(batch_) *
         heads_;
}

}  // namespace vecina::internal
