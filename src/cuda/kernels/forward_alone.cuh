// SPDX-License-Identifier: MIT
// Output of one query by one warp, key by key (alone.cuh), with a running maximum.
#ifndef VECINA_CUDA_KERNELS_FORWARD_ALONE_CUH_
#define VECINA_CUDA_KERNELS_FORWARD_ALONE_CUH_

#include "alone.cuh"

namespace vecina::cuda {

// Stores output and lse of the query if itself or a key that it sees is not finite; else what was
// stored and is not finite, as sums of tensor cores may overflow where these do not, and columns of
// the output in which a value is not: the others, and a finite lse, keep their bits.
VECINA_DEVICE void attend_alone(const HaloParams& params, int batch, int head,
                                const int (&token)[3]) {
  const int head_kv = head / kConfig.head_group;
  bool is_good = true, are_values_good = true;
  KeyRow query;
  ValueRow output;
  query.load(row_at(params.query, batch, head, token), is_good);
  output.clear();
  float maximum = -infinity(), total = 0.0f;
  // No bias without a partner's token.
  const auto add = [&](const char* key_row, const char* value_row, const int(*partner)[3]) {
    KeyRow key;
    ValueRow value;
    key.load(key_row, is_good);
    value.load(value_row, are_values_good);
    float logit = query.dot(key) * params.scale_to_powers;
    if (partner != nullptr) add_bias(params, head, token, *partner, logit);
    const float next = larger(maximum, logit);
    const float shift = next == -infinity() ? 0.0f : next;
    const float kept = power_of_two(maximum - shift), weight = power_of_two(logit - shift);
    maximum = next;
    total = total * kept + weight;
    output.scale(kept);
    output.add_scaled(weight, value);
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
  output.scale(total == 0.0f ? 0.0f : 1.0f / total);
  const float lse = ((maximum == -infinity() ? 0.0f : maximum) + logarithm_of_two(total)) *
                    static_cast<float>(kLn2);
  is_good = __all_sync(0xffffffffu, is_good && is_finite(lse)) != 0;
  if (params.lse.data != nullptr && threadIdx.x % 32 == 0) {
    float* stored_lse = reinterpret_cast<float*>(row_at(params.lse, batch, head, token));
    if (!is_good || !is_finite(*stored_lse)) *stored_lse = lse;
  }
  char* stored = row_at(params.output, batch, head, token);
  ValueRow before;
  before.load(stored, are_values_good);
  if (is_good) {
    if (__all_sync(0xffffffffu, are_values_good && output.is_finite()) != 0) return;
    output.keep_finite(before);
  }
  output.store(stored);
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_FORWARD_ALONE_CUH_
