// SPDX-License-Identifier: MIT
// The definition of neighborhood attention (arXiv:2504.16922): which keys a query sees, and the
// softmax over them. Forward and backward both start here.
//
// For query i and each key j that it sees (its window, then the additional tokens):
//   logit_ij       = scale * query_i . key_j + bias[j - i]   (with e4m3: scale * head_scale)
//   probability_ij = exp(logit_ij - lse_i),   lse_i = log sum_j exp(logit_ij)
//   output_i       = sum_j probability_ij * value_j
#ifndef VECINA_REFERENCE_ATTENTION_H_
#define VECINA_REFERENCE_ATTENTION_H_

#include <array>
#include <cstdint>
#include <vector>

#include "reference/arithmetic.h"
#include "reference/geometry.h"

namespace vecina::internal::reference {

// The inputs that both passes have.
struct Inputs {
  vecina_tensor query, key, value, additional_key, additional_value, bias, lengths, query_lengths;
  vecina_tensor head_scale = {};  // forward only
};

template <class Args>
Inputs inputs_of(const Args& args) {
  Inputs inputs = {
      args.query, args.key,     args.value,        args.additional_key, args.additional_value,
      args.bias,  args.lengths, args.query_lengths};
  if constexpr (requires { args.head_scale; }) inputs.head_scale = args.head_scale;
  return inputs;
}

// One key that a query sees.
struct VisibleKey {
  bool is_additional;
  Position token;  // in key and value; of an additional token, its number
  Position place;  // in the window, along each axis; not for additional tokens
  Position bias;   // index into the bias; not for additional tokens
};

// Looks at the tensors from one query at a time: enter_sample, then look_from each of its tokens,
// then attend with each head.
template <class A>
class Attention {
 public:
  using Element = typename A::Element;
  using QueryKey = typename A::QueryKey;
  using Real = typename A::Real;
  using Lse = typename A::Lse;

  Attention(const Problem& problem, const Inputs& inputs)
      : problem_(problem),
        inputs_(inputs),
        scale_(static_cast<Real>(problem.scale())),
        head_scale_(given(inputs.head_scale)
                        ? reinterpret_cast<const Lse*>(address(inputs.head_scale))
                        : nullptr),
        query_row_(static_cast<size_t>(problem.head_dim())) {
    bias_ = bias_rows<const Lse>(inputs_.bias);
    int64_t most = 1;  // keys that one query sees
    for (int a = 0; a < problem.rank(); ++a) most *= problem.axis(a).kernel_size;
    most += problem.additional_tokens();
    visible_.reserve(static_cast<size_t>(most));
    probabilities_.reserve(static_cast<size_t>(most));
  }

  void enter_sample(const Sample& sample) {
    sample_ = sample;
    query_ = token_rows<const QueryKey>(inputs_.query, sample, sample.query);
    key_ = token_rows<const QueryKey>(inputs_.key, sample, sample.key);
    value_ = token_rows<const Element>(inputs_.value, sample, sample.key);
    additional_key_ = additional_rows<const QueryKey>(inputs_.additional_key, sample);
    additional_value_ = additional_rows<const Element>(inputs_.additional_value, sample);
  }

  // Lists the keys that the query behind a token of the output sees: the product of the axes'
  // windows, then every additional token.
  void look_from(const Position& output_token) {
    windows_.fill({0, 1, 1});
    for (size_t a = 0; a < static_cast<size_t>(problem_.rank()); ++a) {
      const int axis = static_cast<int>(a);
      query_token_[a] = output_token[a] * problem_.axis(axis).output_stride;
      windows_[a] = window_of(problem_, axis, output_token[a], sample_.key.extent[a]);
    }

    visible_.clear();
    for_each_index(Position{windows_[0].count, windows_[1].count, windows_[2].count},
                   [&](const Position& index) {
                     VisibleKey visible = {false, {}, index, {}};
                     for (size_t a = 0; a < 3; ++a) {
                       const Axis& axis = problem_.axis(static_cast<int>(a));
                       visible.token[a] = windows_[a].begin + index[a] * windows_[a].step;
                       // Key and query lie in the same dilation group, so this division has no
                       // remainder.
                       visible.bias[a] = (visible.token[a] - query_token_[a]) / axis.dilation +
                                         axis.kernel_size - 1;
                     }
                     visible_.push_back(visible);
                   });
    for (int64_t n = 0; n < problem_.additional_tokens(); ++n) {
      visible_.push_back({true, {n, 0, 0}, {}, {}});
    }
  }

  // Takes up one head of the query.
  void turn_to(int head) {
    head_ = head;
    if (query_.given()) load(query_.at(query_token_, head), query_row_);
  }
  Real logit(const VisibleKey& visible) const {
    Real logit = scale_ * dot(query_row_, key_row(visible));
    if (head_scale_ != nullptr) logit *= static_cast<Real>(head_scale_[head_]);
    if (bias_.given() && !visible.is_additional) {
      logit += static_cast<Real>(*bias_.at(visible.bias, head_));
    }
    return A::rounded(logit);
  }
  // Computes the probability of every visible key for one head; returns the query's lse.
  Real attend(int head) {
    turn_to(head);
    probabilities_.clear();
    for (const VisibleKey& visible : visible_) probabilities_.push_back(logit(visible));
    return softmax<A>(probabilities_);
  }

  // What look_from and attend found; keys and probabilities have the same order.
  const std::array<Window, 3>& windows() const { return windows_; }  // along each axis
  const Position& query_token() const { return query_token_; }
  const std::vector<VisibleKey>& visible_keys() const { return visible_; }
  const std::vector<Real>& probabilities() const { return probabilities_; }
  const std::vector<Real>& query_row() const { return query_row_; }
  const QueryKey* key_row(const VisibleKey& visible) const {
    return (visible.is_additional ? additional_key_ : key_).at(visible.token, head_kv());
  }
  const Element* value_row(const VisibleKey& visible) const {
    return (visible.is_additional ? additional_value_ : value_).at(visible.token, head_kv());
  }
  // Query heads share key heads in groups (grouped-query attention).
  int head_kv() const { return head_ / problem_.head_group(); }
  Real scale() const { return scale_; }

 private:
  const Problem& problem_;
  const Inputs inputs_;
  const Real scale_;
  const Lse* const head_scale_;  // by head; null: none

  Sample sample_;
  Rows<const QueryKey> query_, key_, additional_key_;
  Rows<const Element> value_, additional_value_;
  Rows<const Lse> bias_;
  Position query_token_ = {};
  std::array<Window, 3> windows_ = {};
  int head_ = 0;
  std::vector<VisibleKey> visible_;
  std::vector<Real> query_row_, probabilities_;
};

}  // namespace vecina::internal::reference
#endif  // VECINA_REFERENCE_ATTENTION_H_
