// SPDX-License-Identifier: MIT
// What is computed, without pointers: checked once by Problem::make, then trusted by every layer.
//
// A Problem is immutable, compares and hashes by value, and prints as one line that Problem::parse
// reads back; that line is the command line's input and the form of bug reports.
#ifndef VECINA_CORE_PROBLEM_H_
#define VECINA_CORE_PROBLEM_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/status.h"
#include "core/window.h"
#include "vecina/vecina.h"

namespace vecina::internal {

// One token axis. A VECINA_ATTENTION problem has one whose kernel_size is its extent.
struct Axis {
  int64_t extent = 1;        // tokens of key and value
  int64_t query_extent = 1;  // tokens of query; differs from extent in attention only
  int64_t kernel_size = 1;
  int64_t stride = 1;
  int64_t output_stride = 1;
  int64_t dilation = 1;
  bool is_causal = false;

  // Tokens of output and lse: queries 0, output_stride, 2 * output_stride, ...
  int64_t num_queries() const { return (query_extent + output_stride - 1) / output_stride; }
  friend bool operator==(const Axis&, const Axis&) = default;
};

class Problem {
 public:
  Problem() = default;  // 1d 1 kernel_size 1; a placeholder to make into

  // Checks every rule of the definition and fills in defaults.
  static Status make(const vecina_problem& given, Problem* problem);
  // The problem line of docs/concepts.md, for example "2d 32x32 kernel_size 7 heads 4 head_dim 32".
  static Status parse(std::string_view line, Problem* problem);

  std::string line() const;     // canonical; leaves out defaults
  vecina_problem to_c() const;  // struct_size set, defaults filled in
  uint64_t hash() const;
  friend bool operator==(const Problem&, const Problem&) = default;

  vecina_kind kind() const { return kind_; }
  bool is_attention() const { return kind_ == VECINA_ATTENTION; }
  int rank() const { return rank_; }
  const Axis& axis(int a) const { return axes_[static_cast<size_t>(a)]; }  // 0 is outermost
  int64_t batch() const { return batch_; }
  int heads() const { return heads_; }
  int heads_kv() const { return heads_kv_; }
  int head_group() const { return heads_ / heads_kv_; }  // query head h reads kv head h / group
  int head_dim() const { return head_dim_; }
  int head_dim_value() const { return head_dim_value_; }
  int32_t dtype() const { return dtype_; }
  int32_t query_key_dtype() const { return query_key_dtype_; }  // resolved: dtype unless given
  bool has_e4m3() const { return query_key_dtype_ == VECINA_E4M3; }
  int64_t additional_tokens() const { return additional_tokens_; }
  bool has_scale() const { return has_scale_; }
  double scale() const { return scale_; }  // resolved: head_dim^-0.5 unless given
  bool has_bias() const { return has_bias_; }
  vecina_lengths lengths() const { return lengths_; }
  int samples() const { return samples_; }  // packed only
  int64_t num_samples() const { return lengths_ == VECINA_LENGTHS_PACKED ? samples_ : batch_; }
  uint32_t flags() const { return flags_; }

  // The problem of one sample whose lengths are these: batch 1, equal lengths. Unlike other
  // problems it may have no tokens.
  Problem of_sample(const std::array<int64_t, 3>& extent,
                    const std::array<int64_t, 3>& query_extent) const;
  // The problem of so many samples that fill the extents. Its tensors may be larger than any that
  // can be addressed.
  Problem of_full_samples(int64_t batch) const;
  Problem with_head_dim_value(int head_dim_value) const;  // 1 or more

  int64_t num_keys() const;     // tokens of key, product over the axes
  int64_t num_queries() const;  // tokens of output, product over the axes
  // Of one query and head in the split form: the window at full size, then the additional tokens.
  int64_t num_slots() const;
  // (query, key) pairs of one head of one sample, additional tokens included; equal lengths
  // assumed.
  double visible_pairs() const;
  // 4 * visible pairs * mean of the two head dims over batch and heads: both products, no masks.
  double forward_flops() const;

 private:
  vecina_kind kind_ = VECINA_NEIGHBORHOOD;
  int rank_ = 1;
  int64_t batch_ = 1;
  int heads_ = 1, heads_kv_ = 1, head_dim_ = 1, head_dim_value_ = 1;
  std::array<Axis, 3> axes_;
  int32_t dtype_ = VECINA_F32, query_key_dtype_ = VECINA_F32;
  int64_t additional_tokens_ = 0;
  bool has_scale_ = false, has_bias_ = false;
  double scale_ = 1.0;
  vecina_lengths lengths_ = VECINA_LENGTHS_EQUAL;
  int samples_ = 0;
  uint32_t flags_ = 0;
};

// rank 1 to 3; every stride, dilation, batch and heads 1, f32, the rest 0.
vecina_problem default_problem(int rank);

// The keys that one query sees along one axis: begin, begin + step, ..., count of them, in tokens.
struct Window {
  int64_t begin, step, count;
};
// `index` counts output tokens of the axis; the length may be a sample's own (varlen).
Window window_of(const Problem& problem, int axis, int64_t index);
Window window_of(const Problem& problem, int axis, int64_t index, int64_t length);

}  // namespace vecina::internal
#endif  // VECINA_CORE_PROBLEM_H_
