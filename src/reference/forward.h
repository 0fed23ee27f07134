// SPDX-License-Identifier: MIT
// Forward: output_i = sum_j probability_ij * value_j, and lse.
#ifndef VECINA_REFERENCE_FORWARD_H_
#define VECINA_REFERENCE_FORWARD_H_

#include <algorithm>
#include <limits>
#include <vector>

#include "reference/attention.h"

namespace vecina::internal::reference {

template <class A>
void forward(const Problem& problem, const vecina_forward_args& args) {
  using Element = typename A::Element;
  using Real = typename A::Real;
  using Lse = typename A::Lse;

  // What no query writes: tokens beyond a sample's lengths.
  fill(args.output, convert<Element>(Real{0}));
  fill(args.lse, -std::numeric_limits<Lse>::infinity());

  Attention<A> attention(problem, inputs_of(args));
  std::vector<Real> output_row(static_cast<size_t>(problem.head_dim_value()));
  for_each_sample(problem, args.lengths, args.query_lengths, [&](const Sample& sample) {
    attention.enter_sample(sample);
    const auto output = token_rows<Element>(args.output, sample, sample.output);
    const auto lse = token_rows<Lse>(args.lse, sample, sample.output);

    for_each_index(sample.output.extent, [&](const Position& token) {
      attention.look_from(token);
      for (int head = 0; head < problem.heads(); ++head) {
        const Real lse_of_query = attention.attend(head);
        if (lse.given()) *lse.at(token, head) = static_cast<Lse>(lse_of_query);

        std::fill(output_row.begin(), output_row.end(), Real{0});
        for (size_t j = 0; j < attention.visible_keys().size(); ++j) {
          add_scaled(attention.probabilities()[j], attention.value_row(attention.visible_keys()[j]),
                     output_row.size(), output_row.data());
        }
        store(output_row, output.at(token, head));
      }
    });
  });
}

}  // namespace vecina::internal::reference
#endif  // VECINA_REFERENCE_FORWARD_H_
