/* SPDX-License-Identifier: MIT
 *
 * The layout of vecina.h's structs on 64-bit platforms, as released: frozen, for C11 and C++20.
 * A new field is appended to a struct and adds lines here; no line ever changes.
 */
#ifndef VECINA_TESTS_ABI_LAYOUT_H_
#define VECINA_TESTS_ABI_LAYOUT_H_

#include <assert.h> /* static_assert in C11 */
#include <stddef.h>

#include "vecina/vecina.h"

#define VECINA_AT(type, field, offset) \
  static_assert(offsetof(type, field) == (offset), #type "." #field)

static_assert(sizeof(void*) == 8 && sizeof(size_t) == 8, "64 bits");
static_assert(sizeof(enum vecina_status) == 4, "enums are ints");

static_assert(VECINA_OK == 0 && VECINA_INVALID_ARGUMENT == 1 && VECINA_UNSUPPORTED == 2, "status");
static_assert(VECINA_OUT_OF_MEMORY == 3 && VECINA_DEVICE_ERROR == 4, "status");
static_assert(VECINA_INTERNAL == 5, "status");
static_assert(VECINA_F32 == 0 && VECINA_F64 == 1 && VECINA_F16 == 2 && VECINA_BF16 == 3, "dtype");
static_assert(VECINA_I32 == 4 && VECINA_I64 == 5, "dtype");
static_assert(VECINA_CPU == 0 && VECINA_CUDA == 1 && VECINA_VULKAN == 2, "device");
static_assert(VECINA_METAL == 3, "device");
static_assert(VECINA_NEIGHBORHOOD == 0 && VECINA_ATTENTION == 1, "kind");
static_assert(VECINA_LENGTHS_EQUAL == 0 && VECINA_LENGTHS_PADDED == 1, "lengths");
static_assert(VECINA_LENGTHS_PACKED == 2, "lengths");
static_assert(VECINA_ALLOW_TF32 == 1 && VECINA_NONDETERMINISTIC_BACKWARD == 2, "flags");

VECINA_AT(vecina_tensor, data, 0);
VECINA_AT(vecina_tensor, byte_offset, 8);
VECINA_AT(vecina_tensor, shape, 16);
VECINA_AT(vecina_tensor, strides, 64);
VECINA_AT(vecina_tensor, ndim, 112);
VECINA_AT(vecina_tensor, dtype, 116);
VECINA_AT(vecina_tensor, device, 120);
VECINA_AT(vecina_tensor, device_index, 124);
static_assert(sizeof(vecina_tensor) == 128, "vecina_tensor never changes");

VECINA_AT(vecina_problem, struct_size, 0);
VECINA_AT(vecina_problem, kind, 8);
VECINA_AT(vecina_problem, rank, 12);
VECINA_AT(vecina_problem, batch, 16);
VECINA_AT(vecina_problem, heads, 24);
VECINA_AT(vecina_problem, heads_kv, 28);
VECINA_AT(vecina_problem, head_dim, 32);
VECINA_AT(vecina_problem, head_dim_value, 36);
VECINA_AT(vecina_problem, extent, 40);
VECINA_AT(vecina_problem, query_extent, 64);
VECINA_AT(vecina_problem, kernel_size, 88);
VECINA_AT(vecina_problem, stride, 112);
VECINA_AT(vecina_problem, output_stride, 136);
VECINA_AT(vecina_problem, dilation, 160);
VECINA_AT(vecina_problem, is_causal, 184);
VECINA_AT(vecina_problem, dtype, 196);
VECINA_AT(vecina_problem, additional_tokens, 200);
VECINA_AT(vecina_problem, has_scale, 208);
VECINA_AT(vecina_problem, has_bias, 212);
VECINA_AT(vecina_problem, scale, 216);
VECINA_AT(vecina_problem, lengths, 224);
VECINA_AT(vecina_problem, samples, 228);
VECINA_AT(vecina_problem, flags, 232);
VECINA_AT(vecina_problem, query_key_dtype, 236);
static_assert(sizeof(vecina_problem) == 240, "vecina_problem of 0.1");

VECINA_AT(vecina_context_options, struct_size, 0);
VECINA_AT(vecina_context_options, backend, 8);
VECINA_AT(vecina_context_options, device_index, 16);
VECINA_AT(vecina_context_options, threads, 20);
VECINA_AT(vecina_context_options, cache_dir, 24);
VECINA_AT(vecina_context_options, parallel_for, 32);
VECINA_AT(vecina_context_options, parallel_for_user, 40);
static_assert(sizeof(vecina_context_options) == 48, "vecina_context_options of 0.1");

VECINA_AT(vecina_forward_args, struct_size, 0);
VECINA_AT(vecina_forward_args, query, 8);
VECINA_AT(vecina_forward_args, key, 136);
VECINA_AT(vecina_forward_args, value, 264);
VECINA_AT(vecina_forward_args, additional_key, 392);
VECINA_AT(vecina_forward_args, additional_value, 520);
VECINA_AT(vecina_forward_args, bias, 648);
VECINA_AT(vecina_forward_args, lengths, 776);
VECINA_AT(vecina_forward_args, query_lengths, 904);
VECINA_AT(vecina_forward_args, output, 1032);
VECINA_AT(vecina_forward_args, lse, 1160);
VECINA_AT(vecina_forward_args, workspace, 1288);
VECINA_AT(vecina_forward_args, workspace_bytes, 1296);
VECINA_AT(vecina_forward_args, head_scale, 1304);
static_assert(sizeof(vecina_forward_args) == 1432, "vecina_forward_args of 0.1");

VECINA_AT(vecina_backward_args, struct_size, 0);
VECINA_AT(vecina_backward_args, query, 8);
VECINA_AT(vecina_backward_args, key, 136);
VECINA_AT(vecina_backward_args, value, 264);
VECINA_AT(vecina_backward_args, additional_key, 392);
VECINA_AT(vecina_backward_args, additional_value, 520);
VECINA_AT(vecina_backward_args, bias, 648);
VECINA_AT(vecina_backward_args, lengths, 776);
VECINA_AT(vecina_backward_args, query_lengths, 904);
VECINA_AT(vecina_backward_args, output, 1032);
VECINA_AT(vecina_backward_args, lse, 1160);
VECINA_AT(vecina_backward_args, grad_output, 1288);
VECINA_AT(vecina_backward_args, grad_lse, 1416);
VECINA_AT(vecina_backward_args, grad_query, 1544);
VECINA_AT(vecina_backward_args, grad_key, 1672);
VECINA_AT(vecina_backward_args, grad_value, 1800);
VECINA_AT(vecina_backward_args, grad_additional_key, 1928);
VECINA_AT(vecina_backward_args, grad_additional_value, 2056);
VECINA_AT(vecina_backward_args, grad_bias, 2184);
VECINA_AT(vecina_backward_args, workspace, 2312);
VECINA_AT(vecina_backward_args, workspace_bytes, 2320);
static_assert(sizeof(vecina_backward_args) == 2328, "vecina_backward_args of 0.1");

VECINA_AT(vecina_split_args, struct_size, 0);
VECINA_AT(vecina_split_args, query, 8);
VECINA_AT(vecina_split_args, key, 136);
VECINA_AT(vecina_split_args, additional_key, 264);
VECINA_AT(vecina_split_args, bias, 392);
VECINA_AT(vecina_split_args, value, 520);
VECINA_AT(vecina_split_args, additional_value, 648);
VECINA_AT(vecina_split_args, weights, 776);
VECINA_AT(vecina_split_args, output, 904);
VECINA_AT(vecina_split_args, grad_weights, 1032);
VECINA_AT(vecina_split_args, grad_output, 1160);
VECINA_AT(vecina_split_args, grad_query, 1288);
VECINA_AT(vecina_split_args, grad_key, 1416);
VECINA_AT(vecina_split_args, grad_additional_key, 1544);
VECINA_AT(vecina_split_args, grad_bias, 1672);
VECINA_AT(vecina_split_args, grad_value, 1800);
VECINA_AT(vecina_split_args, grad_additional_value, 1928);
VECINA_AT(vecina_split_args, right_aligned, 2056);
VECINA_AT(vecina_split_args, reserved, 2060);
static_assert(sizeof(vecina_split_args) == 2064, "vecina_split_args of 0.1");

#undef VECINA_AT
#endif /* VECINA_TESTS_ABI_LAYOUT_H_ */
