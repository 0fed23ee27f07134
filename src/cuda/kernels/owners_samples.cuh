// SPDX-License-Identifier: MIT
// Samples of different length, for blocks of owners: a block computes as if its sample were all, by
// parameters of that sample alone in shared memory. And rows that get no result: tokens of a padded
// sample beyond its lengths, all of one that is smaller than its window, queries without an output.
#ifndef VECINA_CUDA_KERNELS_OWNERS_SAMPLES_CUH_
#define VECINA_CUDA_KERNELS_OWNERS_SAMPLES_CUH_

#include "owners.cuh"
#include "samples.cuh"

namespace vecina::cuda {

struct SampleView {
  HaloParams params;  // facts and additional tokens are those of all samples
  int exists[3];      // tokens of owners in the sample's tensors
};

// Where a packed sample's tokens lie; `step` is from a token that the rows have to the next.
VECINA_DEVICE void place_packed(const Tokens& tokens, const int (&step)[3], HaloRows& rows) {
  if (rows.data == nullptr) return;
  const int token = rows.token[2];
  rows.data += tokens.first * token;
  rows.batch = 0;
  rows.token[0] = token * tokens.extent[2] * tokens.extent[1] * step[0];
  rows.token[1] = token * tokens.extent[2] * step[1];
  rows.token[2] = token * step[2];
}

// Of a copy of the parameters.
VECINA_DEVICE void fit_to_sample(const HaloParams& params, const Sample& sample, SampleView& view) {
  HaloParams& own = view.params;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    own.axes[a].extent = sample.has_windows ? sample.key.extent[a] : 0;
    own.num_outputs[a] = sample.has_windows ? sample.output.extent[a] : 0;
    view.exists[a] = kConfig.of_keys ? params.axes[a].extent : params.num_outputs[a];
  }
  if constexpr (kConfig.lengths == kPackedLengths) {
    constexpr int kOne[3] = {1, 1, 1};
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      own.query_extent[a] = sample.query.extent[a];
      view.exists[a] = kConfig.of_keys ? sample.key.extent[a] : sample.output.extent[a];
    }
    for (HaloRows* rows : {&own.query, &own.grad_query}) {
      place_packed(sample.query, kConfig.output_stride, *rows);
    }
    for (HaloRows* rows : {&own.key, &own.value, &own.grad_key, &own.grad_value}) {
      place_packed(sample.key, kOne, *rows);
    }
    for (HaloRows* rows : {&own.output, &own.lse, &own.grad_output, &own.grad_lse}) {
      place_packed(sample.output, kOne, *rows);
    }
  }
}
// By the whole block, after wait_for_previous().
VECINA_DEVICE void make_view(const HaloParams& params, int block, SampleView& view) {
  constexpr int kWords = sizeof(HaloParams) / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += kThreads) {
    reinterpret_cast<unsigned*>(&view.params)[i] = reinterpret_cast<const unsigned*>(&params)[i];
  }
  __syncthreads();
  if (threadIdx.x < 32) {
#pragma unroll
    for (int a = 2; a >= kFirstAxis; --a) block = divide(block, params.axes[a].divide_tiles);
    const int batch = make_item(params, block * kConfig.items_of_block).batch;
    const Sample sample = sample_at<kConfig.lengths, kFirstAxis>(params.lengths, batch);
    if (threadIdx.x == 0) fit_to_sample(params, sample, view);
  }
  __syncthreads();
}

// visit(token, is_owner): the block's tokens, also those beyond the sample.
template <class Visit>
VECINA_DEVICE void for_tokens_of_block(const Tile& tile, Visit visit) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kBoxes; i += kThreads) {
    int place = i, token[3] = {0, 0, 0};
    bool is_owner = true;
#pragma unroll
    for (int a = 2; a >= kFirstAxis; --a) {
      const int size = kConfig.box[a] * kConfig.boxes[a];
      const Group group = tile.groups.along(a);
      const int at = tile.first[a] + place % size;
      place /= size;
      token[a] = na_group_to_axis(at, kGroupSteps.owners[a], group.residue);
      is_owner = is_owner && at < group.num_owners;
    }
    visit(token, is_owner);
  }
}
VECINA_DEVICE bool is_below(const int (&token)[3], const int (&extent)[3]) {
  bool is_below = true;
#pragma unroll
  for (int a = kFirstAxis; a < 3; ++a) is_below = is_below && token[a] < extent[a];
  return is_below;
}

template <int kColumns>
VECINA_DEVICE void clear_row(char* row) {
#pragma unroll
  for (int chunk = 0; chunk < kColumns / 8; ++chunk) {
    reinterpret_cast<uint4*>(row)[chunk] = make_uint4(0, 0, 0, 0);
  }
}

// clear(token): a token that exists and gets no result.
template <class Clear>
VECINA_DEVICE void clear_others(const Tile& tile, const int (&exists)[3], Clear clear) {
  for_tokens_of_block(tile, [&](const int(&token)[3], bool is_owner) {
    if (!is_owner && is_below(token, exists)) clear(token);
  });
}
// Gradients of a head's queries that have none.
VECINA_DEVICE void clear_queries(const HaloParams& params, const Tile& tile,
                                 const int (&exists)[3], int batch, int head) {
  if (params.grad_query.data == nullptr) return;
  char* rows = head_rows(params.grad_query, batch, head);
  constexpr int kCell =
      kConfig.output_stride[0] * kConfig.output_stride[1] * kConfig.output_stride[2];
  for_tokens_of_block(tile, [&](const int(&token)[3], bool is_owner) {
    if (!is_below(token, exists)) return;
#pragma unroll 1
    for (int i = is_owner ? 1 : 0; i < kCell; ++i) {  // the first has the output
      int place = i, query[3] = {0, 0, 0};
      long long offset = 0;
#pragma unroll
      for (int a = 2; a >= kFirstAxis; --a) {
        const int step = kConfig.output_stride[a], at = place % step;
        place /= step;
        query[a] = token[a] * step + at;
        offset += static_cast<long long>(query[a]) * (params.grad_query.token[a] / step);
      }
      if (is_below(query, params.query_extent)) clear_row<kKeyColumns>(rows + offset);
    }
  });
}

// compute(params): the work of block `number`, if its sample has owners for it; before,
// clear(params, tile, exists).
template <class Clear, class Compute>
VECINA_DEVICE void compute_sample(const HaloParams& params, Clear clear, Compute compute,
                                  int number = number_of_block()) {
  if constexpr (!kHasLengths) {
    compute(params);
  } else {
    __shared__ SampleView view;
    wait_for_previous();
    make_view(params, number, view);
    const Tile tile = make_tile(view.params, number);
    clear(view.params, tile, view.exists);
    bool has_owners = true;
#pragma unroll
    for (int a = kFirstAxis; a < 3; ++a) {
      has_owners = has_owners && tile.first[a] < tile.groups.owners_along(a);
    }
    if (has_owners) compute(view.params);
  }
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_OWNERS_SAMPLES_CUH_
