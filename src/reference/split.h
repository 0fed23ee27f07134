// SPDX-License-Identifier: MIT
// The split form: the two products of attention with the weights between them given or kept.
//   qk: weight_is = logit_ij,  s the slot of key j in the window of query i (attention.h)
//   av: output_i  = sum_s weight_is * value_j
// With G a gradient:
//   qk: G_query_i  = scale * sum_s G_weight_is * key_j   G_key_j   = scale * sum_i G_weight_is *
//   query_i
//       G_bias[j - i] = sum over queries of G_weight_is
//   av: G_weight_is = G_output_i . value_j               G_value_j = sum_i weight_is * G_output_i
// A slot without a key is -infinity after qk, 0 in G_weight, and not looked at otherwise.
#ifndef VECINA_REFERENCE_SPLIT_H_
#define VECINA_REFERENCE_SPLIT_H_

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "core/arguments.h"
#include "reference/attention.h"
#include "reference/backward.h"

namespace vecina::internal::reference {

// Walks the slots of every query and head. Visit: one call for each (query, head), which finds the
// visible keys in attention() and the slot of each with slot().
template <class A>
class SplitWalk {
 public:
  using Element = typename A::Element;

  SplitWalk(const Problem& problem, const vecina_split_args& args)
      : problem_(problem),
        args_(args),
        attention_(problem, {args.query,
                             args.key,
                             args.value,
                             args.additional_key,
                             args.additional_value,
                             args.bias,
                             {},
                             {}}) {}

  Attention<A>& attention() { return attention_; }
  const Sample& sample() const { return sample_; }

  // Calls visit(output token, head).
  template <class Visit>
  void for_each_query(Visit&& visit) {
    for_each_sample(problem_, {}, {}, [&](const Sample& sample) {
      sample_ = sample;
      attention_.enter_sample(sample);
      for_each_index(sample.output.extent, [&](const Position& token) {
        attention_.look_from(token);
        for (int head = 0; head < problem_.heads(); ++head) {
          attention_.turn_to(head);
          visit(token, head);
        }
      });
    });
  }

  int64_t slot(const VisibleKey& visible) const {
    if (visible.is_additional) {
      return problem_.num_slots() - problem_.additional_tokens() + visible.token[0];
    }
    int64_t slot = 0;
    for (int a = 0; a < problem_.rank(); ++a) {
      const auto i = static_cast<size_t>(a);
      const int64_t size = problem_.axis(a).kernel_size;
      const int64_t empty = args_.right_aligned ? size - attention_.windows()[i].count : 0;
      slot = slot * size + empty + visible.place[i];
    }
    return slot;
  }
  template <class T>
  Rows<T> rows(const vecina_tensor& tensor, const Tokens& tokens) const {
    return token_rows<T>(tensor, sample_, tokens);
  }

 private:
  const Problem& problem_;
  const vecina_split_args& args_;
  Attention<A> attention_;
  Sample sample_;
};

template <class A>
void qk(const Problem& problem, const vecina_split_args& args) {
  using Element = typename A::Element;
  fill(args.weights, convert<Element>(-std::numeric_limits<typename A::Real>::infinity()));
  SplitWalk<A> walk(problem, args);
  walk.for_each_query([&](const Position& token, int head) {
    const auto weights = walk.template rows<Element>(args.weights, walk.sample().output);
    for (const VisibleKey& key : walk.attention().visible_keys()) {
      weights.at(token, head)[walk.slot(key)] = convert<Element>(walk.attention().logit(key));
    }
  });
}

template <class A>
void av(const Problem& problem, const vecina_split_args& args) {
  using Element = typename A::Element;
  using Real = typename A::Real;
  std::vector<Real> output_row(static_cast<size_t>(problem.head_dim_value()));
  SplitWalk<A> walk(problem, args);
  walk.for_each_query([&](const Position& token, int head) {
    const auto weights = walk.template rows<const Element>(args.weights, walk.sample().output);
    const auto output = walk.template rows<Element>(args.output, walk.sample().output);
    std::fill(output_row.begin(), output_row.end(), Real{0});
    for (const VisibleKey& key : walk.attention().visible_keys()) {
      add_scaled(convert<Real>(weights.at(token, head)[walk.slot(key)]),
                 walk.attention().value_row(key), output_row.size(), output_row.data());
    }
    store(output_row, output.at(token, head));
  });
}

template <class A>
void qk_backward(const Problem& problem, const vecina_split_args& args) {
  using Element = typename A::Element;
  using Real = typename A::Real;
  fill(args.grad_query, convert<Element>(Real{0}));  // tokens that are no queries keep it
  const GradientSum<Real> key_sum(args.grad_key), additional_sum(args.grad_additional_key);
  const GradientSum<Real> bias_sum(args.grad_bias);
  const auto grad_bias = bias_rows<Real>(bias_sum.sum());
  const auto head_dim = static_cast<size_t>(problem.head_dim());
  std::vector<Real> grad_query_row(head_dim);
  SplitWalk<A> walk(problem, args);
  walk.for_each_query([&](const Position& token, int head) {
    const Attention<A>& attention = walk.attention();
    const auto grad_weights =
        walk.template rows<const Element>(args.grad_weights, walk.sample().output);
    const auto grad_query = walk.template rows<Element>(args.grad_query, walk.sample().query);
    const auto grad_key = walk.template rows<Real>(key_sum.sum(), walk.sample().key);
    const auto grad_additional = additional_rows<Real>(additional_sum.sum(), walk.sample());
    std::fill(grad_query_row.begin(), grad_query_row.end(), Real{0});
    for (const VisibleKey& key : attention.visible_keys()) {
      const Real gradient = convert<Real>(grad_weights.at(token, head)[walk.slot(key)]);
      const Real factor = attention.scale() * gradient;
      add_scaled(factor, attention.key_row(key), head_dim, grad_query_row.data());
      const auto& to_key = key.is_additional ? grad_additional : grad_key;
      if (to_key.given()) {
        add_scaled(factor, attention.query_row().data(), head_dim,
                   to_key.at(key.token, attention.head_kv()));
      }
      if (grad_bias.given() && !key.is_additional) *grad_bias.at(key.bias, head) += gradient;
    }
    if (grad_query.given()) store(grad_query_row, grad_query.at(attention.query_token(), head));
  });
  key_sum.template write<Element>();
  additional_sum.template write<Element>();
  bias_sum.template write<typename A::Lse>();
}

template <class A>
void av_backward(const Problem& problem, const vecina_split_args& args) {
  using Element = typename A::Element;
  using Real = typename A::Real;
  fill(args.grad_weights, convert<Element>(Real{0}));
  const GradientSum<Real> value_sum(args.grad_value), additional_sum(args.grad_additional_value);
  const auto head_dim = static_cast<size_t>(problem.head_dim_value());
  std::vector<Real> grad_output_row(head_dim);
  SplitWalk<A> walk(problem, args);
  walk.for_each_query([&](const Position& token, int head) {
    const Attention<A>& attention = walk.attention();
    const Tokens& outputs = walk.sample().output;
    const auto weights = walk.template rows<const Element>(args.weights, outputs);
    const auto grad_output = walk.template rows<const Element>(args.grad_output, outputs);
    const auto grad_weights = walk.template rows<Element>(args.grad_weights, outputs);
    const auto grad_value = walk.template rows<Real>(value_sum.sum(), walk.sample().key);
    const auto grad_additional = additional_rows<Real>(additional_sum.sum(), walk.sample());
    load(grad_output.at(token, head), grad_output_row);
    for (const VisibleKey& key : attention.visible_keys()) {
      const int64_t slot = walk.slot(key);
      if (grad_weights.given()) {
        grad_weights.at(token, head)[slot] =
            convert<Element>(A::rounded(dot(grad_output_row, attention.value_row(key))));
      }
      const auto& to_value = key.is_additional ? grad_additional : grad_value;
      if (to_value.given()) {
        add_scaled(convert<Real>(weights.at(token, head)[slot]), grad_output_row.data(), head_dim,
                   to_value.at(key.token, attention.head_kv()));
      }
    }
  });
  value_sum.template write<Element>();
  additional_sum.template write<Element>();
}

}  // namespace vecina::internal::reference
#endif  // VECINA_REFERENCE_SPLIT_H_
