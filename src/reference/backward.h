// SPDX-License-Identifier: MIT
// Backward. With P the probabilities, and the gradient of lse inside delta:
//   dP_ij   = grad_output_i . value_j
//   delta_i = sum_j P_ij * dP_ij - grad_lse_i      (= output_i . grad_output_i - grad_lse_i)
//   dS_ij   = P_ij * (dP_ij - delta_i)             gradient of the logit
//   grad_query_i = scale * sum_j dS_ij * key_j     grad_key_j   = scale * sum_i dS_ij * query_i
//   grad_value_j = sum_i P_ij * grad_output_i      grad_bias[j - i] = sum over queries of dS_ij
// Probabilities are computed anew from the inputs; the output and lse of the forward pass, which
// were rounded, are not read.
#ifndef VECINA_REFERENCE_BACKWARD_H_
#define VECINA_REFERENCE_BACKWARD_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "reference/attention.h"

namespace vecina::internal::reference {

// Collects the gradient of a tensor that many queries add to, in Real, before it is rounded once.
template <class Real>
class GradientSum {
 public:
  explicit GradientSum(const vecina_tensor& gradient) : gradient_(gradient), sum_(gradient) {
    if (!given(gradient)) return;
    storage_.assign(static_cast<size_t>(num_elements(gradient)), Real{0});
    sum_.data = storage_.data();
    sum_.byte_offset = 0;
    int64_t stride = 1;
    for (int d = gradient.ndim - 1; d >= 0; --d) {
      sum_.strides[d] = stride;
      stride *= gradient.shape[d];
    }
  }
  GradientSum(const GradientSum&) = delete;  // sum_ points into storage_
  GradientSum& operator=(const GradientSum&) = delete;

  // The tensor to add to, of Real and contiguous; not given if the gradient is not wanted.
  const vecina_tensor& sum() const { return sum_; }

  // Overwrites the whole gradient.
  template <class T>
  void write() const {
    if (!given(sum_)) return;
    for_each_index(extent_of(sum_), [&](const TensorIndex& index) {
      *at<T>(gradient_, index) = convert<T>(*at<const Real>(sum_, index));
    });
  }

 private:
  const vecina_tensor gradient_;
  vecina_tensor sum_;
  std::vector<Real> storage_;
};

template <class A>
void backward(const Problem& problem, const vecina_backward_args& args) {
  using Element = typename A::Element;
  using Real = typename A::Real;
  using Lse = typename A::Lse;

  // Queries that no output token stands for (output_stride, lengths) keep this zero.
  fill(args.grad_query, convert<Element>(Real{0}));
  const GradientSum<Real> key_sum(args.grad_key), value_sum(args.grad_value);
  const GradientSum<Real> additional_key_sum(args.grad_additional_key);
  const GradientSum<Real> additional_value_sum(args.grad_additional_value);
  const GradientSum<Real> bias_sum(args.grad_bias);
  const auto grad_bias = bias_rows<Real>(bias_sum.sum());

  Attention<A> attention(problem, inputs_of(args));
  const auto head_dim = static_cast<size_t>(problem.head_dim());
  const auto head_dim_value = static_cast<size_t>(problem.head_dim_value());
  std::vector<Real> grad_output_row(head_dim_value), grad_query_row(head_dim);
  std::vector<Real> grad_logits;  // first dP, then dS
  for_each_sample(problem, args.lengths, args.query_lengths, [&](const Sample& sample) {
    attention.enter_sample(sample);
    const auto grad_output = token_rows<const Element>(args.grad_output, sample, sample.output);
    const auto grad_lse = token_rows<const Lse>(args.grad_lse, sample, sample.output);
    const auto grad_query = token_rows<Element>(args.grad_query, sample, sample.query);
    const auto grad_key = token_rows<Real>(key_sum.sum(), sample, sample.key);
    const auto grad_value = token_rows<Real>(value_sum.sum(), sample, sample.key);
    const auto grad_additional_key = additional_rows<Real>(additional_key_sum.sum(), sample);
    const auto grad_additional_value = additional_rows<Real>(additional_value_sum.sum(), sample);

    for_each_index(sample.output.extent, [&](const Position& token) {
      attention.look_from(token);
      const std::vector<VisibleKey>& keys = attention.visible_keys();
      for (int head = 0; head < problem.heads(); ++head) {
        attention.attend(head);
        const std::vector<Real>& probabilities = attention.probabilities();
        load(grad_output.at(token, head), grad_output_row);

        grad_logits.clear();
        Real delta = grad_lse.given() ? -static_cast<Real>(*grad_lse.at(token, head)) : Real{0};
        for (size_t j = 0; j < keys.size(); ++j) {
          grad_logits.push_back(dot(grad_output_row, attention.value_row(keys[j])));
          delta += probabilities[j] * grad_logits[j];
        }
        for (size_t j = 0; j < keys.size(); ++j) {
          grad_logits[j] = A::rounded(probabilities[j] * (grad_logits[j] - delta));
        }

        std::fill(grad_query_row.begin(), grad_query_row.end(), Real{0});
        for (size_t j = 0; j < keys.size(); ++j) {
          const bool is_additional = keys[j].is_additional;
          const Real factor = attention.scale() * grad_logits[j];
          add_scaled(factor, attention.key_row(keys[j]), head_dim, grad_query_row.data());
          const auto& to_key = is_additional ? grad_additional_key : grad_key;
          if (to_key.given()) {
            add_scaled(factor, attention.query_row().data(), head_dim,
                       to_key.at(keys[j].token, attention.head_kv()));
          }
          const auto& to_value = is_additional ? grad_additional_value : grad_value;
          if (to_value.given()) {
            add_scaled(probabilities[j], grad_output_row.data(), head_dim_value,
                       to_value.at(keys[j].token, attention.head_kv()));
          }
          if (grad_bias.given() && !is_additional) {
            *grad_bias.at(keys[j].bias, head) += grad_logits[j];
          }
        }
        if (grad_query.given()) {
          store(grad_query_row, grad_query.at(attention.query_token(), head));
        }
      }
    });
  });

  key_sum.template write<Element>();
  value_sum.template write<Element>();
  additional_key_sum.template write<Element>();
  additional_value_sum.template write<Element>();
  bias_sum.template write<Lse>();
}

}  // namespace vecina::internal::reference
#endif  // VECINA_REFERENCE_BACKWARD_H_
