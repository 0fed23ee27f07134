// SPDX-License-Identifier: MIT
#include "cuda/hopper_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include "core/tensor.h"
#include "cuda/driver.h"
#include "cuda/halo_plan.h"
#include "cuda/hopper_map.h"
#include "cuda/kernels/hopper_params.h"
#include "cuda/kernels/hopper_samples_config.h"
#include "cuda/small_common.h"
#include "cuda/tuned_cuts.h"

namespace vecina::internal::cuda {
namespace {

using vecina::cuda::hopper_layout;
using vecina::cuda::HopperMap;
using vecina::cuda::HopperParams;
using vecina::cuda::HopperRows;
using vecina::cuda::HopperSample;
using vecina::cuda::HopperSamplesConfig;
using vecina::cuda::HopperSamplesParams;
using vecina::cuda::HopperTokens;

// Of hopper_samples.cu: for each multiprocessor, to clear with all of them.
constexpr int64_t kClearingBlocks = 4;
constexpr uint32_t kClearingThreads = 256;
constexpr int kMaxStep = 8;  // between the tokens of a copy
constexpr double kMaxInt = 2147483647.0;
// Multiply-adds of visible pairs of a launch below which one of the small kernels is sooner done.
constexpr double kMinWork = 67108864.0;
// Of a block of two warpgroups whose boxes are full. With fewer for each multiprocessor, launches
// one after another leave some of them idle every time.
constexpr int kBlockQueries = 2 * vecina::cuda::kHopperRows;

// A row is a multiple of the 16 bytes of a copy.
std::string dim_why_not(const char* name, int head_dim, int32_t dtype, const Problem& problem) {
  // With three axes and the samples' lengths no dimension of the maps is left for heads.
  const bool is_padded = problem.rank() < 3 || problem.lengths() == VECINA_LENGTHS_EQUAL;
  const int unit = (is_padded ? 16 : 32) / static_cast<int>(dtype_bytes(dtype));
  if (head_dim % unit == 0 && head_dim <= 256) return {};
  return fmt::format("{} {}: multiples of {} up to 256 only", name, head_dim, unit);
}

// Softmax is computed in powers of two.
float scale_of(const Problem& problem) {
  return static_cast<float>(problem.scale() * std::numbers::log2e);
}

bool has_lengths(const Problem& problem) { return problem.lengths() != VECINA_LENGTHS_EQUAL; }

// A packed tensor as the longest sample lies in it: [1, extents..., heads, columns].
vecina_tensor longest_sample(const Problem& problem, const vecina_tensor& tensor,
                             int64_t (*extent)(const Axis& axis)) {
  if (problem.lengths() != VECINA_LENGTHS_PACKED) return tensor;
  const int rank = problem.rank();
  vecina_tensor sample = tensor;
  sample.ndim = rank + 3;
  int64_t stride = tensor.strides[1];
  for (int a = rank - 1; a >= 0; --a) {
    sample.shape[1 + a] = extent(problem.axis(a));
    sample.strides[1 + a] = stride;
    stride *= sample.shape[1 + a];
  }
  for (int d = 0; d < 2; ++d) {
    sample.shape[rank + 1 + d] = tensor.shape[2 + d];
    sample.strides[rank + 1 + d] = tensor.strides[2 + d];
  }
  return sample;
}
int64_t keys_of(const Axis& axis) { return axis.extent; }
int64_t queries_of(const Axis& axis) { return axis.query_extent; }
int64_t outputs_of(const Axis& axis) { return axis.num_queries(); }

struct Maps {
  HopperMapPlan query, key, value, output, additional_key, additional_value;
};

Status make_maps(const Problem& problem, const vecina_forward_args& example,
                 const HopperConfig& config, Maps* maps) {
  const HopperLayout layout = hopper_layout(config);
  std::array<int, 3> query_step, dilation;
  for (int a = 0; a < 3; ++a) {
    const Axis axis = hopper_axis(problem, a);
    dilation[static_cast<size_t>(a)] = static_cast<int>(axis.dilation);
    query_step[static_cast<size_t>(a)] =
        static_cast<int>(std::max(axis.dilation, axis.output_stride));
  }
  const std::array<int, 3> queries = std::to_array(config.query_box);
  const std::array<int, 3> keys = std::to_array(config.key_box);
  const std::array<int, 3> rows = {1, 1, layout.key_rows}, ones = {1, 1, 1};
  const int rank = problem.rank();
  const HopperHeads heads_are = rank < 3                     ? HopperHeads::axis0
                                : config.has_heads_for_batch ? HopperHeads::batch
                                                             : HopperHeads::columns;
  const auto add = [&](const char* name, const vecina_tensor& tensor, int axes,
                       const std::array<int, 3>& box, const std::array<int, 3>& steps,
                       HopperMapPlan* plan) {
    return make_map(name, tensor, axes, heads_are, box, steps, plan);
  };
  const auto of = [&](const vecina_tensor& tensor, int64_t (*extent)(const Axis&)) {
    return longest_sample(problem, tensor, extent);
  };
  VECINA_RETURN_IF_ERROR(
      add("query", of(example.query, queries_of), rank, queries, query_step, &maps->query));
  VECINA_RETURN_IF_ERROR(add("key", of(example.key, keys_of), rank, keys, dilation, &maps->key));
  VECINA_RETURN_IF_ERROR(
      add("value", of(example.value, keys_of), rank, keys, dilation, &maps->value));
  VECINA_RETURN_IF_ERROR(
      add("output", of(example.output, outputs_of), rank, queries, dilation, &maps->output));
  if (!config.has_additional) return {};
  VECINA_RETURN_IF_ERROR(
      add("additional_key", example.additional_key, 1, rows, ones, &maps->additional_key));
  return add("additional_value", example.additional_value, 1, rows, ones, &maps->additional_value);
}

// Queries of a block along an axis.
int block_along(const HopperConfig& config, int a) {
  return config.query_box[a] * (a == config.pair_axis ? config.warpgroups : 1);
}

// In elements, of a tensor [batch, tokens..., ...].
HopperRows rows_of(const vecina_tensor& tensor, int axes) {
  HopperRows rows = {};
  rows.batch = tensor.strides[0];
  for (int a = 0; a < axes; ++a) rows.token[3 - axes + a] = tensor.strides[1 + a];
  return rows;
}

// Everything of the parameters but what depends on addresses.
HopperParams make_params(const Problem& problem, const vecina_forward_args& example,
                         const HopperConfig& config, const Maps& maps) {
  HopperParams params = {};
  for (int a = 0; a < 3; ++a) {
    const Axis axis = hopper_axis(problem, a);
    const int box = block_along(config, a);
    const int64_t longest = (axis.num_queries() + axis.dilation - 1) / axis.dilation;
    params.axes[a] = {static_cast<int>(axis.extent),
                      static_cast<int>(axis.num_queries()),
                      static_cast<int>(axis.kernel_size),
                      static_cast<int>(axis.stride),
                      static_cast<int>(axis.dilation),
                      static_cast<int>(axis.output_stride),
                      axis.is_causal ? 1 : 0,
                      static_cast<int>((longest + box - 1) / box * axis.dilation)};
  }
  const int axes = token_rank(problem);
  params.output = rows_of(example.output, axes);
  if (given(example.lse)) {
    params.lse_rows = rows_of(example.lse, axes);
    params.lse_head = example.lse.strides[1 + axes];
  }
  params.query_head = maps.query.head_stride;
  params.key_head = maps.key.head_stride;
  params.value_head = maps.value.head_stride;
  params.output_head = maps.output.head_stride;
  params.additional_key_head = maps.additional_key.head_stride;
  params.additional_value_head = maps.additional_value.head_stride;
  params.additional_tokens = static_cast<int>(problem.additional_tokens());
  const int key_rows = hopper_layout(config).key_rows;
  params.additional_tiles = (params.additional_tokens + key_rows - 1) / key_rows;
  params.num_packs = problem.heads() / config.packed_heads;
  params.packs = divider(params.num_packs);
  params.packs_per_group = divider(problem.head_group() / config.packed_heads);
  params.tiles0 = divider(params.axes[0].tiles);
  params.tiles1 = divider(params.axes[1].tiles);
  params.tiles2 = divider(params.axes[2].tiles);
  for (int a = 0; a < 3; ++a) params.dilations[a] = divider(params.axes[a].dilation);
  params.num_samples = static_cast<int>(problem.num_samples());
  params.num_blocks = params.num_samples * params.num_packs * params.axes[0].tiles *
                      params.axes[1].tiles * params.axes[2].tiles;
  params.scale = scale_of(problem);
  return params;
}

std::string print(const HopperSamplesConfig& c) {
  return fmt::format("{{.rank = {}, .lengths = {}, .head_dim_value = {}}}", c.rank, c.lengths,
                     c.head_dim_value);
}

// Behind the workspace's samples: the numbers of their first blocks.
int* first_blocks(HopperSample* samples, int64_t num_samples) {
  return reinterpret_cast<int*>(samples + num_samples);
}

// In bytes, but for addresses. What a sample's map keeps of `plan` is what does not depend on it.
HopperTokens tokens_of(const Problem& problem, const vecina_tensor& tensor,
                       const HopperMapPlan& plan) {
  HopperTokens tokens = {};
  if (problem.lengths() == VECINA_LENGTHS_PACKED) {
    tokens.rows.token[2] = tensor.strides[1] * dtype_bytes(tensor.dtype);
    return tokens;
  }
  tokens.rows.batch = static_cast<int64_t>(plan.byte_strides[3]);
  for (int a = 3 - problem.rank(); a < 3; ++a) {
    tokens.rows.token[a] = static_cast<int64_t>(plan.byte_strides[static_cast<size_t>(2 - a)]);
  }
  return tokens;
}

// The launch that describes the samples to `forward`'s, and clears what that does not write.
ForwardLaunch samples_launch(const Problem& problem, const vecina_forward_args& example,
                             const DeviceFacts& facts, const HopperConfig& config, const Maps& maps,
                             const HopperParams& forward) {
  HopperSamplesParams params = {};
  params.query = tokens_of(problem, example.query, maps.query);
  params.key = tokens_of(problem, example.key, maps.key);
  params.value = tokens_of(problem, example.value, maps.value);
  params.output = tokens_of(problem, example.output, maps.output);
  params.lengths = sample_lengths(problem, example);
  for (int a = 0; a < 3; ++a) {
    params.num_queries[a] = forward.axes[a].num_queries;
    params.dilation[a] = forward.axes[a].dilation;
    params.block[a] = block_along(config, a);
  }
  params.num_packs = forward.num_packs;
  params.heads = problem.heads();
  params.has_additional = problem.additional_tokens() > 0 ? 1 : 0;
  params.output_head = int64_t{forward.output_head} * vecina::cuda::kHopperValueBytes;
  params.output_rows = forward.output;
  params.lse_rows = forward.lse_rows;
  params.lse_head = forward.lse_head;
  ForwardLaunch launch;
  launch.source = {
      "hopper_samples.cu",
      "hopper_samples",
      "hopper_samples_config.h",
      "HopperSamplesConfig",
      print(HopperSamplesConfig{problem.rank(), problem.lengths(), problem.head_dim_value()}),
      true};
  const int64_t samples = problem.num_samples();
  launch.grid[0] = static_cast<uint32_t>(samples);
  launch.grid[1] = static_cast<uint32_t>(
      std::max<int64_t>(1, kClearingBlocks * facts.multiprocessors / samples));
  launch.block[0] = kClearingThreads;
  launch.is_programmatic = true;
  launch.params_bytes = sizeof(HopperSamplesParams);
  launch.workspace_bytes = hopper_workspace_bytes(problem);
  launch.fill = [params, maps, samples](const vecina_forward_args& args, void* memory) -> Status {
    auto* filled = static_cast<HopperSamplesParams*>(memory);
    *filled = params;
    set_lengths(args, &filled->lengths);
    filled->lse = given(args.lse) ? reinterpret_cast<float*>(address(args.lse)) : nullptr;
    filled->samples = static_cast<HopperSample*>(args.workspace);
    filled->first_blocks = first_blocks(filled->samples, samples);
    const auto fill = [](const HopperMapPlan& plan, const vecina_tensor& tensor,
                         HopperTokens* tokens) {
      tokens->data = address(tensor);
      return encode_map(plan, tensor, &tokens->map);
    };
    VECINA_RETURN_IF_ERROR(fill(maps.query, args.query, &filled->query));
    VECINA_RETURN_IF_ERROR(fill(maps.key, args.key, &filled->key));
    VECINA_RETURN_IF_ERROR(fill(maps.value, args.value, &filled->value));
    return fill(maps.output, args.output, &filled->output);
  };
  launch.description = R"("why": "lengths are data of a call")";
  return launch;
}

// A launch for each sample, since the maps hold one.
Status launch_by_sample(const Problem& problem, const vecina_forward_args& example,
                        const DeviceFacts& facts, const HopperChoice& choice,
                        std::vector<ForwardLaunch>* launches) {
  const Problem one = problem.of_full_samples(/*batch=*/1);
  HopperChoice of_one = hopper_choice(one, facts, choice.config);
  of_one.is_tuned = choice.is_tuned;
  for (int64_t sample = 0; sample < problem.batch(); ++sample) {
    PartOfCall<vecina_forward_args> part;
    const vecina_forward_args own = args_of_sample(example, sample, &part);
    VECINA_RETURN_IF_ERROR(hopper_launch(one, own, facts, of_one, launches));
    fill_part(part, &launches->back());
  }
  return {};
}

// What was measured fastest, else what is predicted to be.
HopperChoice choose(const Problem& problem, const DeviceFacts& facts) {
  if (facts.tuned != nullptr) {
    const std::optional<TunedCut> tuned = facts.tuned->read(problem);
    HopperConfig config;
    if (tuned && apply_cut(problem, facts, tuned->cut, &config)) {
      HopperChoice choice = hopper_choice(problem, facts, config);
      choice.is_tuned = true;
      return choice;
    }
  }
  return choose_hopper_tiling(problem, facts);
}

}  // namespace

std::string describe_cut(const HopperConfig& config) {
  return fmt::format(
      R"("queries_per_warpgroup": [{}, {}, {}], "packed_heads": {}, "keys_per_tile": [{}, {}, {}], )"
      R"("short_rows": {}, )"
      R"("warpgroups": {}, "pair_axis": {}, "stages": {}, "ping_pong": {}, "chained": {}, )"
      R"("output_buffer": {})",
      config.query_box[0], config.query_box[1], config.query_box[2], config.packed_heads,
      config.key_box[0], config.key_box[1], config.key_box[2], config.short_rows, config.warpgroups,
      config.pair_axis - (3 - config.rank), config.stages, config.is_ping_pong, config.is_chained,
      config.has_output_buffer);
}

std::string print(const HopperConfig& c) {
  return fmt::format(
      "{{.dtype = {}, .query_key_dtype = {}, .rank = {}, .head_dim = {}, .head_dim_value = {}, "
      ".output_columns = {}, "
      ".has_heads_for_batch = {}, "
      ".warpgroups = {}, .pair_axis = {}, .query_box = {}, .packed_heads = {}, .key_box = {}, "
      ".short_rows = {}, "
      ".stages = {}, .is_ping_pong = {}, .has_output_buffer = {}, .is_chained = {}, "
      ".keeps_shift = {}, .is_causal = {}, .is_strided = {}, .is_dilated = {}, .has_additional = "
      "{}, "
      ".has_lengths = {}}}",
      c.dtype, c.query_key_dtype, c.rank, c.head_dim, c.head_dim_value, c.output_columns,
      c.has_heads_for_batch, c.warpgroups, c.pair_axis, braces(c.query_box), c.packed_heads,
      braces(c.key_box), c.short_rows, c.stages, c.is_ping_pong, c.has_output_buffer, c.is_chained,
      c.keeps_shift, c.is_causal, c.is_strided, c.is_dilated, c.has_additional, c.has_lengths);
}

Problem with_longest_samples(const Problem& problem) {
  return has_lengths(problem) ? problem.of_full_samples(problem.num_samples()) : problem;
}

std::string hopper_why_not(const Problem& problem, Pass pass, const DeviceFacts& facts) {
  if (facts.compute_capability != 90) return "a GPU of compute capability 9.0 only";
  if (pass == Pass::backward) return "computes outputs alone";
  if (problem.dtype() != VECINA_BF16 && problem.dtype() != VECINA_F16) {
    return "dtypes f16 and bf16 only";
  }
  if (problem.has_bias()) return "bias: not yet";
  if (!std::isnormal(scale_of(problem)) || scale_of(problem) < 0) return "a scale above 0 only";
  std::string why = dim_why_not("head_dim", problem.head_dim(), problem.query_key_dtype(), problem);
  if (why.empty()) {
    why = dim_why_not("head_dim_value", problem.head_dim_value(), problem.dtype(), problem);
  }
  if (!why.empty()) return why;
  bool is_dilated = false, has_output_stride = false;
  for (int a = 0; a < problem.rank(); ++a) {
    const Axis& axis = problem.axis(a);
    if (axis.dilation > kMaxStep) {
      return fmt::format("dilation {}: up to {} only", axis.dilation, kMaxStep);
    }
    if (axis.output_stride > kMaxStep) {
      return fmt::format("output_stride {}: up to {} only", axis.output_stride, kMaxStep);
    }
    is_dilated = is_dilated || axis.dilation > 1;
    has_output_stride = has_output_stride || axis.output_stride > 1;
  }
  if (is_dilated && has_output_stride) return "dilation with output_stride: not yet";
  const Problem longest = with_longest_samples(problem);
  if (query_rows(longest) > kMaxInt || static_cast<double>(problem.num_keys()) > kMaxInt ||
      static_cast<double>(problem.additional_tokens()) > kMaxInt / 2) {
    return "the problem has more than 2^31 - 1 queries or keys";
  }
  if (problem.has_e4m3()) return {};  // no other takes it, however slow this one
  if (!has_lengths(problem) && halo_beats_hopper(problem, facts)) {
    return "small windows of short rows: others are faster";
  }
  const auto launches = static_cast<double>(count_hopper_launches(problem));
  if (longest.forward_flops() < 2 * kMinWork * launches) {
    return fmt::format("at least {:.0f} million multiply-adds{} only", kMinWork / 1e6,
                       launches > 1 ? " for each sample" : "");
  }
  const int least = kBlockQueries * facts.multiprocessors;
  if (launches > 1 && query_rows(problem) < least * launches) {
    return fmt::format(
        "three axes and a head dim that is no multiple of 16, so a launch for each sample: at "
        "least {} queries of all heads in each only",
        least);
  }
  return {};
}

vecina_forward_args args_of_sample(const vecina_forward_args& example, int64_t sample,
                                   PartOfCall<vecina_forward_args>* part) {
  using Args = vecina_forward_args;
  const auto tensors = std::to_array({&Args::query, &Args::key, &Args::value, &Args::additional_key,
                                      &Args::additional_value, &Args::output, &Args::lse});
  for (const auto tensor : tensors) {
    const vecina_tensor& whole = example.*tensor;
    if (!given(whole)) continue;
    part->shift(tensor, sample * whole.strides[0] * dtype_bytes(whole.dtype));
  }
  vecina_forward_args one = part->of(example);
  for (const auto tensor : tensors) {
    if (given(one.*tensor)) (one.*tensor).shape[0] = 1;
  }
  return one;
}

size_t hopper_workspace_bytes(const Problem& problem) {
  if (!has_lengths(problem)) return 0;
  const auto samples = static_cast<size_t>(problem.num_samples());
  return samples * sizeof(HopperSample) + (samples + 1) * sizeof(int);
}

Status hopper_launch(const Problem& problem, const vecina_forward_args& example,
                     const DeviceFacts& facts, const HopperChoice& choice,
                     std::vector<ForwardLaunch>* launches) {
  if (choice.config.has_heads_for_batch && problem.batch() > 1) {
    return launch_by_sample(problem, example, facts, choice, launches);
  }
  HopperConfig config = choice.config;
  config.has_lengths = has_lengths(problem);
  Maps maps = {};
  VECINA_RETURN_IF_ERROR(make_maps(problem, example, config, &maps));
  const HopperParams params = make_params(problem, example, config, maps);
  if (config.has_lengths) {
    launches->push_back(samples_launch(problem, example, facts, config, maps, params));
  }
  ForwardLaunch launch;
  launch.source = {"hopper_forward.cu", "hopper_forward", "hopper_config.h",
                   "HopperConfig",      print(config),    true};
  launch.grid[0] = static_cast<uint32_t>(std::min(params.num_blocks, facts.multiprocessors));
  launch.block[0] = static_cast<uint32_t>(128 * (config.warpgroups + 1));
  launch.shared_bytes = static_cast<uint32_t>(hopper_layout(config).bytes);
  launch.is_programmatic = true;
  launch.params_bytes = sizeof(HopperParams);
  launch.workspace_bytes = hopper_workspace_bytes(problem);
  launch.fill = [params, maps, has_additional = config.has_additional,
                 has_lengths = config.has_lengths](const vecina_forward_args& args,
                                                   void* memory) -> Status {
    auto* filled = static_cast<HopperParams*>(memory);
    *filled = params;
    filled->output_data = address(args.output);
    filled->lse = given(args.lse) ? reinterpret_cast<float*>(address(args.lse)) : nullptr;
    filled->head_scale =
        given(args.head_scale) ? reinterpret_cast<const float*>(address(args.head_scale)) : nullptr;
    if (has_lengths) {
      filled->samples = static_cast<const HopperSample*>(args.workspace);
      filled->first_blocks =
          first_blocks(static_cast<HopperSample*>(args.workspace), params.num_samples);
    } else {
      VECINA_RETURN_IF_ERROR(encode_map(maps.query, args.query, &filled->maps.query));
      VECINA_RETURN_IF_ERROR(encode_map(maps.key, args.key, &filled->maps.key));
      VECINA_RETURN_IF_ERROR(encode_map(maps.value, args.value, &filled->maps.value));
      VECINA_RETURN_IF_ERROR(encode_map(maps.output, args.output, &filled->maps.output));
    }
    if (!has_additional) return {};
    VECINA_RETURN_IF_ERROR(
        encode_map(maps.additional_key, args.additional_key, &filled->additional_key));
    return encode_map(maps.additional_value, args.additional_value, &filled->additional_value);
  };
  const HopperWork& work = choice.work;
  launch.description = fmt::format(
      R"({}, "blocks": {}, "tiles": {}, "masked_share": {:.3f}, "useful_share": {:.3f}, )"
      R"("predicted_ms": {:.4f}, "tuned": {}, "why": "{}")",
      describe_cut(config), work.blocks, work.tiles, 1.0 - work.whole_tiles / work.tiles,
      work.useful_share, choice.predicted_ms, choice.is_tuned,
      choice.is_tuned ? "tuned: the tiles that `vecina tune` measured fastest here"
                      : "the tiles with the lowest predicted time");
  launches->push_back(std::move(launch));
  return {};
}

Status hopper_plan_forward(const Problem& problem, const vecina_forward_args& example,
                           const DeviceFacts& facts, std::vector<ForwardLaunch>* launches) {
  if (problem.num_samples() == 0) return {};
  const HopperChoice choice = choose(with_longest_samples(problem), facts);
  if (choice.predicted_ms == 0) return unsupported("no tiles fit into shared memory");
  return hopper_launch(problem, example, facts, choice, launches);
}

}  // namespace vecina::internal::cuda
