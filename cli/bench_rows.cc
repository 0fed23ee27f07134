// SPDX-License-Identifier: MIT
// The 21 configurations. A new one is a row here.
#include <algorithm>

#include "cli/bench.h"

namespace vecina::cli {
namespace {

const std::vector<BenchRow>& all_rows() {
  using enum BenchKind;
  const std::string d1 = "1d 256 kernel_size 7 batch 2 heads 8 head_dim 32";
  const std::string d2 = "2d 32x32 kernel_size 7 batch 2 heads 4 head_dim 32";
  const std::string d2_8_heads = "2d 32x32 kernel_size 7 batch 2 heads 8 head_dim 32";
  static const std::vector<BenchRow> kRows = {
      {"baseline_1d_L256_K7", "baseline", "Baseline", "1D L=256 K=7", d1, output},
      {"baseline_2d_32x32_K7", "baseline", "Baseline", "2D 32x32 K=7", d2, output},
      {"gqa4_1d_L256_K7", "gqa", "GQA", "GQA4 1D L=256 K=7", d1 + " heads_kv 2", output},
      {"mqa_1d_L256_K7", "gqa", "GQA", "MQA 1D L=256 K=7", d1 + " heads_kv 1", output},
      {"gqa4_2d_32x32_K7", "gqa", "GQA", "GQA4 2D 32x32 K=7", d2_8_heads + " heads_kv 2", output},
      {"mqa_2d_32x32_K7", "gqa", "GQA", "MQA 2D 32x32 K=7", d2_8_heads + " heads_kv 1", output},
      {"lse_1d_L256_K7", "return_lse", "return_lse", "1D L=256 K=7", d1, with_lse},
      {"lse_2d_32x32_K7", "return_lse", "return_lse", "2D 32x32 K=7", d2, with_lse},
      {"addkv1_1d_L256_K7", "additional_kv", "additional_kv", "1 token, 1D L=256 K=7",
       d1 + " additional 1", output},
      {"addkv4_1d_L256_K7", "additional_kv", "additional_kv", "4 tokens, 1D L=256 K=7",
       d1 + " additional 4", output},
      {"addkv1_2d_32x32_K7", "additional_kv", "additional_kv", "1 token, 2D 32x32 K=7",
       d2 + " additional 1", output},
      {"addkv1_gqa4_1d_L256_K7", "additional_kv", "additional_kv", "1 token + GQA4, 1D",
       d1 + " heads_kv 2 additional 1", output},
      {"bf16_1d_L256_K7", "bf16", "bfloat16", "1D L=256 K=7", d1 + " dtype bf16", output},
      {"bf16_2d_32x32_K7", "bf16", "bfloat16", "2D 32x32 K=7", d2 + " dtype bf16", output},
      {"bf16_gqa4_1d_L256_K7", "bf16", "bfloat16", "GQA4 1D L=256 K=7",
       d1 + " heads_kv 2 dtype bf16", output},
      {"fmha_1d_L16_Kfull", "fmha", "FMHA", "1D L=16 full",
       "1d 16 kernel_size 16 batch 4 heads 8 head_dim 32", output},
      {"fmha_1d_L64_Kfull", "fmha", "FMHA", "1D L=64 full",
       "1d 64 kernel_size 64 batch 4 heads 8 head_dim 32", output},
      {"fmha_2d_8x8_Kfull", "fmha", "FMHA", "2D 8x8 full",
       "2d 8x8 kernel_size 8 batch 4 heads 4 head_dim 32", output},
      {"fmha_2d_16x16_Kfull", "fmha", "FMHA", "2D 16x16 full",
       "2d 16x16 kernel_size 16 batch 2 heads 4 head_dim 32", output},
      {"merge2_1d_L256", "merge", "merge", "2-way, 1D L=256", d1, merge},
      {"merge2_2d_32x32", "merge", "merge", "2-way, 2D 32x32", d2, merge},
  };
  return kRows;
}

}  // namespace

const std::vector<std::string>& bench_features() {
  static const std::vector<std::string> kFeatures = {
      "baseline", "gqa", "return_lse", "additional_kv", "bf16", "fmha", "merge"};
  return kFeatures;
}

std::vector<BenchRow> bench_rows(const std::vector<std::string>& features) {
  if (features.empty()) return all_rows();
  std::vector<BenchRow> rows;
  for (const BenchRow& row : all_rows()) {
    if (std::find(features.begin(), features.end(), row.feature) != features.end()) {
      rows.push_back(row);
    }
  }
  return rows;
}

}  // namespace vecina::cli
