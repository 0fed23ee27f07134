// SPDX-License-Identifier: MIT
// Checks the tensors of a call against its problem: shapes, strides, dtypes, devices, overlap and
// null pointers. Runs before anything is written; every message names the tensor, what was given
// and what is allowed.
#ifndef VECINA_CORE_ARGUMENTS_H_
#define VECINA_CORE_ARGUMENTS_H_

#include "core/pass.h"
#include "core/problem.h"
#include "core/status.h"
#include "vecina/vecina.h"

namespace vecina::internal {

// One call of the split form: qk, av or the backward of one of them.
struct SplitArgs {
  Pass pass;
  vecina_split_args c;
};

Status check_arguments(const Problem& problem, const vecina_forward_args& args);
Status check_arguments(const Problem& problem, const vecina_backward_args& args);
Status check_arguments(const Problem& problem, const SplitArgs& args);
Status check_merge(int32_t count, const vecina_tensor* outputs, const vecina_tensor* lses,
                   const vecina_tensor& output, const vecina_tensor& lse);
Status check_merge_backward(int32_t count, const vecina_tensor* outputs, const vecina_tensor* lses,
                            const vecina_tensor& grad_output, const vecina_tensor& grad_lse,
                            const vecina_tensor* grad_outputs, const vecina_tensor* grad_lses);

// Contiguous tensors of the problem's shapes at an address that must not be followed: plans are
// made from them where there is no data. Every optional tensor is there; samples have the extents.
void imagine_arguments(const Problem& problem, vecina_device device, vecina_forward_args* args);
void imagine_arguments(const Problem& problem, vecina_device device, vecina_backward_args* args);
// Of args->pass.
void imagine_arguments(const Problem& problem, vecina_device device, SplitArgs* args);

// The tensors of a call by name, in a fixed order; the same for example and run.
struct NamedTensor {
  const char* name;
  const vecina_tensor* tensor;
  bool is_output;
};
inline constexpr int kMaxTensors = 19;
int list_tensors(const vecina_forward_args& args, NamedTensor (&list)[kMaxTensors]);
int list_tensors(const vecina_backward_args& args, NamedTensor (&list)[kMaxTensors]);
int list_tensors(const SplitArgs& args, NamedTensor (&list)[kMaxTensors]);  // those of its pass

// One that every call has: the others are where it is.
inline const vecina_tensor& first_tensor(const vecina_forward_args& args) { return args.query; }
inline const vecina_tensor& first_tensor(const vecina_backward_args& args) { return args.query; }
inline const vecina_tensor& first_tensor(const SplitArgs& args) {
  const bool is_qk = args.pass == Pass::qk || args.pass == Pass::qk_backward;
  return is_qk ? args.c.query : args.c.value;
}

// What may change between a plan's example and a run is the addresses only: the same tensors given,
// at least as aligned (16 bytes) as the example's, outputs still apart from everything else.
Status check_run(const Problem& problem, const vecina_forward_args& example,
                 const vecina_forward_args& args);
Status check_run(const Problem& problem, const vecina_backward_args& example,
                 const vecina_backward_args& args);
Status check_run(const Problem& problem, const SplitArgs& example, const SplitArgs& args);

// Device memory that a plan works in: enough of it, aligned.
Status check_workspace(size_t needed_bytes, const void* workspace, size_t workspace_bytes);

}  // namespace vecina::internal
#endif  // VECINA_CORE_ARGUMENTS_H_
