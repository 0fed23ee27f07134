// SPDX-License-Identifier: MIT
// Samples of different lengths: where each one's tokens lie in the tensors of a call. With its own
// tensors a sample is a problem of its own, of batch 1.
#ifndef VECINA_CPU_SAMPLES_H_
#define VECINA_CPU_SAMPLES_H_

#include <array>
#include <cstdint>
#include <vector>

#include "core/problem.h"
#include "core/tensor.h"
#include "vecina/vecina.h"

namespace vecina::internal::cpu {

// The tokens that one sample has in a tensor; extents by axis of the problem, 1 beyond its rank.
struct Tokens {
  std::array<int64_t, 3> extent = {1, 1, 1};
  int64_t first = 0;  // packed: tokens of the samples before it

  int64_t count() const { return extent[0] * extent[1] * extent[2]; }
};

struct Sample {
  int64_t index = 0;
  bool has_queries = false;  // and windows; otherwise there is nothing to compute
  Tokens query, key, output;
};

// The lengths of a call, those of key and of query in turn, sample by sample, axis by axis. Calls
// visit(length) for each.
template <class Visit>
void for_each_length(const Problem& problem, const vecina_tensor& lengths,
                     const vecina_tensor& query_lengths, const Visit& visit) {
  const bool is_of_both = !given(query_lengths);
  for (int64_t sample = 0; sample < lengths.shape[0]; ++sample) {
    for (int a = 0; a < problem.rank(); ++a) {
      visit(length_at(lengths, sample, a));
      visit(length_at(is_of_both ? lengths : query_lengths, sample, a));
    }
  }
}
// What for_each_length visits, as samples.
std::vector<Sample> samples_of(const Problem& problem, const std::vector<int64_t>& lengths);

// Which tokens a tensor has: `all` is none of any one sample (bias, lengths).
enum class TokensOf { all, query, key, output, additional };
// What stands where no query or key of a sample is.
enum class Beyond { is_input, is_zero, is_minus_infinity };

template <class Args>
struct Field {
  vecina_tensor Args::*tensor;
  TokensOf tokens;
  Beyond beyond;
};
// All tensors of a call.
template <class Args>
inline constexpr int kFields = 0;  // there are two kinds of calls
template <>
inline constexpr auto kFields<vecina_forward_args> = [] {
  using Args = vecina_forward_args;
  return std::array<Field<Args>, 10>{{
      {&Args::query, TokensOf::query, Beyond::is_input},
      {&Args::key, TokensOf::key, Beyond::is_input},
      {&Args::value, TokensOf::key, Beyond::is_input},
      {&Args::additional_key, TokensOf::additional, Beyond::is_input},
      {&Args::additional_value, TokensOf::additional, Beyond::is_input},
      {&Args::bias, TokensOf::all, Beyond::is_input},
      {&Args::lengths, TokensOf::all, Beyond::is_input},
      {&Args::query_lengths, TokensOf::all, Beyond::is_input},
      {&Args::output, TokensOf::output, Beyond::is_zero},
      {&Args::lse, TokensOf::output, Beyond::is_minus_infinity},
  }};
}();
template <>
inline constexpr auto kFields<vecina_backward_args> = [] {
  using Args = vecina_backward_args;
  return std::array<Field<Args>, 18>{{
      {&Args::query, TokensOf::query, Beyond::is_input},
      {&Args::key, TokensOf::key, Beyond::is_input},
      {&Args::value, TokensOf::key, Beyond::is_input},
      {&Args::additional_key, TokensOf::additional, Beyond::is_input},
      {&Args::additional_value, TokensOf::additional, Beyond::is_input},
      {&Args::bias, TokensOf::all, Beyond::is_input},
      {&Args::lengths, TokensOf::all, Beyond::is_input},
      {&Args::query_lengths, TokensOf::all, Beyond::is_input},
      {&Args::output, TokensOf::output, Beyond::is_input},
      {&Args::lse, TokensOf::output, Beyond::is_input},
      {&Args::grad_output, TokensOf::output, Beyond::is_input},
      {&Args::grad_lse, TokensOf::output, Beyond::is_input},
      {&Args::grad_query, TokensOf::query, Beyond::is_zero},
      {&Args::grad_key, TokensOf::key, Beyond::is_zero},
      {&Args::grad_value, TokensOf::key, Beyond::is_zero},
      {&Args::grad_additional_key, TokensOf::additional, Beyond::is_zero},
      {&Args::grad_additional_value, TokensOf::additional, Beyond::is_zero},
      {&Args::grad_bias, TokensOf::all, Beyond::is_input},
  }};
}();

// The example's tensors at the addresses of args.
template <class Args>
Args at_addresses(const Args& args, Args example) {
  for (const Field<Args>& field : kFields<Args>) {
    example.*field.tensor = at_address(example.*field.tensor, args.*field.tensor);
  }
  return example;
}

// A sample's part of a tensor, [1, extents..., ...]; packed or not.
vecina_tensor tensor_of_sample(const Problem& problem, const Sample& sample, TokensOf tokens,
                               const vecina_tensor& tensor);
// The same of a whole call.
template <class Args>
Args args_of_sample(const Problem& problem, const Sample& sample, Args args) {
  for (const Field<Args>& field : kFields<Args>) {
    args.*field.tensor = tensor_of_sample(problem, sample, field.tokens, args.*field.tensor);
  }
  return args;
}

// Writes what stands beyond the tokens of a sample; everywhere if it has no queries.
void clear_beyond(const Problem& problem, const Sample& sample, TokensOf tokens, Beyond beyond,
                  const vecina_tensor& tensor);
template <class Args>
void clear_beyond(const Problem& problem, const Sample& sample, const Args& args) {
  for (const Field<Args>& field : kFields<Args>) {
    clear_beyond(problem, sample, field.tokens, field.beyond, args.*field.tensor);
  }
}

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_SAMPLES_H_
