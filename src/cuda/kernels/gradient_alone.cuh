// SPDX-License-Identifier: MIT
// Gradients of one owner by one warp, partner by partner (alone.cuh). The formulas stand in
// gradient_pairs.cuh.
#ifndef VECINA_CUDA_KERNELS_GRADIENT_ALONE_CUH_
#define VECINA_CUDA_KERNELS_GRADIENT_ALONE_CUH_

#include "alone.cuh"

namespace vecina::cuda {

// Stores gradient and facts of the query if anything that it sees, or what was stored, is not
// finite. Of some columns of the gradient: the facts with the first.
template <int kFirst = 0, int kEnd = kKeyColumns>
VECINA_DEVICE void differentiate_query_alone(const HaloParams& params, int batch, int head,
                                       const int (&token)[3]) {
  const int head_kv = head / kConfig.head_group;
  bool is_good = true;
  KeyRow query, keys, products;
  ValueRow grad_output, output;
  query.load(row_at(params.query, batch, head, token), is_good);
  grad_output.load(row_at(params.grad_output, batch, head, token), is_good);
  output.load(row_at(params.output, batch, head, token), is_good);
  keys.clear();
  products.clear();
  const float dot = grad_output.dot(output);
  float maximum = -infinity(), total = 0.0f, differences = 0.0f;
  // No bias without a partner's token.
  const auto add = [&](const char* key_row, const char* value_row, const int(*partner)[3]) {
    KeyRow key;
    ValueRow value;
    key.load(key_row, is_good);
    value.load(value_row, is_good);
    float logit = query.dot(key) * params.scale_to_powers;
    if (partner != nullptr) add_bias(params, head, token, *partner, logit);
    const float difference = grad_output.dot(value) - dot;
    const float next = larger(maximum, logit);
    const float shift = next == -infinity() ? 0.0f : next;
    const float kept = power_of_two(maximum - shift), weight = power_of_two(logit - shift);
    maximum = next;
    total = total * kept + weight;
    differences = fmaf(weight, difference, differences * kept);
    keys.scale(kept);
    keys.add_scaled(weight, key);
    products.scale(kept);
    products.add_scaled(weight * difference, key);
  };
  for_partners(params, token, [&](const int(&partner)[3]) {
    add(row_at(params.key, batch, head_kv, partner), row_at(params.value, batch, head_kv, partner),
        &partner);
  });
#pragma unroll 1
  for (int i = 0; i < kAdditional; ++i) {
    add(head_rows(params.additional_key, batch, head_kv) + i * params.additional_key.token[2],
        head_rows(params.additional_value, batch, head_kv) + i * params.additional_value.token[2],
        nullptr);
  }
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  float delta = differences * inverse;
  if constexpr (kConfig.has_grad_lse) {
    delta -= *reinterpret_cast<const float*>(row_at(params.grad_lse, batch, head, token));
  }
  products.scale(params.scale * inverse);
  products.add_scaled(-delta * params.scale * inverse, keys);
  is_good = is_good && is_finite(delta) && products.is_finite();
  char* stored = nullptr;
  if (params.grad_query.data != nullptr) {
    stored = row_at(params.grad_query, batch, head, token);
    KeyRow before;
    before.load<kFirst, kEnd>(stored, is_good);
  }
  if (__all_sync(0xffffffffu, is_good)) return;
  if (stored != nullptr) products.store<kFirst, kEnd>(stored);
  if (kFirst == 0 && threadIdx.x % 32 == 0) {
    head_facts(params, batch, head)[token_number(params, token)] =
        make_facts(maximum, total, delta, dot);
  }
}

// Stores the gradients of the key if anything of the queries that see it, or what was stored, is
// not finite. Or of some columns of that of key.
template <int kFirst = 0, int kEnd = kKeyColumns>
VECINA_DEVICE void differentiate_key_alone(const HaloParams& params, int batch, int head_kv,
                                       const int (&token)[3]) {
  bool is_good = true;
  KeyRow key, grad_key;
  ValueRow value, grad_value;
  key.load(row_at(params.key, batch, head_kv, token), is_good);
  value.load(row_at(params.value, batch, head_kv, token), is_good);
  grad_key.clear();
  grad_value.clear();
#pragma unroll 1
  for (int head = head_kv * kConfig.head_group; head < (head_kv + 1) * kConfig.head_group; ++head) {
    const HaloFacts* facts = head_facts(params, batch, head);
    for_partners(params, token, [&](const int(&partner)[3]) {
      KeyRow query;
      ValueRow grad_output;
      query.load(row_at(params.query, batch, head, partner), is_good);
      grad_output.load(row_at(params.grad_output, batch, head, partner), is_good);
      const HaloFacts of_query = facts[token_number(params, partner)];
      float logit = query.dot(key) * params.scale_to_powers;
      add_bias(params, head, token, partner, logit);
      const float weight =
          of_query.inverse != 0.0f ? power_of_two(logit - of_query.maximum) : 0.0f;
      const float difference = grad_output.dot(value) - of_query.shift;
      grad_value.add_scaled(weight, grad_output);
      grad_key.add_scaled(weight * difference, query);
    });
  }
  grad_key.scale(params.scale);
  is_good = is_good && grad_key.is_finite() && grad_value.is_finite();
  if (params.grad_key.data != nullptr) {
    KeyRow before;
    before.load<kFirst, kEnd>(row_at(params.grad_key, batch, head_kv, token), is_good);
  }
  if (params.grad_value.data != nullptr) {
    ValueRow before;
    before.load(row_at(params.grad_value, batch, head_kv, token), is_good);
  }
  if (__all_sync(0xffffffffu, is_good)) return;
  if (params.grad_key.data != nullptr) {
    grad_key.store<kFirst, kEnd>(row_at(params.grad_key, batch, head_kv, token));
  }
  if (params.grad_value.data != nullptr) {
    grad_value.store(row_at(params.grad_value, batch, head_kv, token));
  }
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_GRADIENT_ALONE_CUH_
