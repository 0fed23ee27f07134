// SPDX-License-Identifier: MIT
// Merges attentions of the same queries over disjoint sets of keys into the attention over all of
// them: a softmax over their lses (arXiv:1805.02867 does this for running blocks).
//   weight_i = exp(lse_i - lse),   lse = log sum_i exp(lse_i),   output = sum_i weight_i * output_i
// An attention that saw nothing has lse -infinity and weight 0; its output is not looked at.
#ifndef VECINA_REFERENCE_MERGE_H_
#define VECINA_REFERENCE_MERGE_H_

#include <algorithm>
#include <vector>

#include "core/backend.h"
#include "reference/arithmetic.h"
#include "reference/geometry.h"

namespace vecina::internal::reference {

// Calls visit(index) for every row [D] of an output; the same index finds its lse.
template <class Visit>
void for_each_row(const vecina_tensor& output, Visit&& visit) {
  TensorIndex rows = extent_of(output);
  rows[static_cast<size_t>(output.ndim - 1)] = 1;
  for_each_index(rows, visit);
}

inline bool wanted(const vecina_tensor* tensor) { return tensor != nullptr && given(*tensor); }

// The merge of one row: weights, output and lse.
template <class A>
class MergedRow {
 public:
  using Real = typename A::Real;

  MergedRow(int32_t count, const vecina_tensor& output)
      : weights_(static_cast<size_t>(count)),
        output_(static_cast<size_t>(output.shape[output.ndim - 1])) {}

  void compute(const vecina_tensor* outputs, const vecina_tensor* lses, const TensorIndex& index) {
    for (size_t i = 0; i < weights_.size(); ++i) {
      weights_[i] = static_cast<Real>(*at<const typename A::Lse>(lses[i], index));
    }
    lse_ = softmax<A>(weights_);
    std::fill(output_.begin(), output_.end(), Real{0});
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i] == 0) continue;
      add_scaled(weights_[i], at<const typename A::Element>(outputs[i], index), output_.size(),
                 output_.data());
    }
  }

  const std::vector<Real>& weights() const { return weights_; }
  const std::vector<Real>& output() const { return output_; }
  Real lse() const { return lse_; }

 private:
  std::vector<Real> weights_, output_;
  Real lse_ = 0;
};

template <class A>
void merge(const MergeArgs& args) {
  using Element = typename A::Element;
  using Lse = typename A::Lse;
  MergedRow<A> row(args.count, args.outputs[0]);
  for_each_row(args.outputs[0], [&](const TensorIndex& index) {
    row.compute(args.outputs, args.lses, index);
    if (wanted(args.output)) store(row.output(), at<Element>(*args.output, index));
    if (wanted(args.lse)) *at<Lse>(*args.lse, index) = static_cast<Lse>(row.lse());
  });
}

// grad_outputs_i = weight_i * grad_output
// grad_lses_i    = weight_i * (grad_lse + grad_output . (output_i - output))
template <class A>
void merge_backward(const MergeBackwardArgs& args) {
  using Element = typename A::Element;
  using Real = typename A::Real;
  using Lse = typename A::Lse;
  MergedRow<A> row(args.count, args.outputs[0]);
  std::vector<Real> grad_output(row.output().size()), grad_branch(row.output().size());
  for_each_row(args.outputs[0], [&](const TensorIndex& index) {
    row.compute(args.outputs, args.lses, index);
    load(at<const Element>(*args.grad_output, index), grad_output);
    Real delta = dot(grad_output, row.output().data());
    if (wanted(args.grad_lse)) delta -= static_cast<Real>(*at<const Lse>(*args.grad_lse, index));

    for (size_t i = 0; i < row.weights().size(); ++i) {
      const Real weight = row.weights()[i];
      std::fill(grad_branch.begin(), grad_branch.end(), Real{0});
      Real grad_lse = 0;
      if (weight != 0) {
        add_scaled(weight, grad_output.data(), grad_output.size(), grad_branch.data());
        grad_lse = weight * (dot(grad_output, at<const Element>(args.outputs[i], index)) - delta);
      }
      if (args.grad_outputs != nullptr && given(args.grad_outputs[i])) {
        store(grad_branch, at<Element>(args.grad_outputs[i], index));
      }
      if (args.grad_lses != nullptr && given(args.grad_lses[i])) {
        *at<Lse>(args.grad_lses[i], index) = static_cast<Lse>(grad_lse);
      }
    }
  });
}

}  // namespace vecina::internal::reference
#endif  // VECINA_REFERENCE_MERGE_H_
