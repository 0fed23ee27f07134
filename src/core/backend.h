// SPDX-License-Identifier: MIT
// What a backend is: a name, what it can do, and plans that run.
//
// A context owns one instance of each backend, so an instance may hold threads, scratch and caches.
// Problems and arguments that arrive here were checked (problem.cc, arguments.cc).
#ifndef VECINA_CORE_BACKEND_H_
#define VECINA_CORE_BACKEND_H_

#include <memory>
#include <string>
#include <vector>

#include "core/arguments.h"
#include "core/pass.h"
#include "core/problem.h"
#include "core/status.h"
#include "vecina/vecina.h"

namespace vecina::internal {

// Everything decided once for one problem and one set of shapes and strides. Immutable; run() may
// be called from many threads at once. Only the tensors' data pointers may differ from the example.
class Plan {
 public:
  virtual ~Plan() = default;
  virtual Status run(const vecina_forward_args& args, void* queue) const;
  virtual Status run(const vecina_backward_args& args, void* queue) const;
  virtual Status run(const SplitArgs& args, void* queue) const;
  // Times of `repeats` calls by the device's own clock. UNSUPPORTED: the host's clock is as good.
  virtual Status measure(const vecina_forward_args& args, int repeats,
                         std::vector<double>* times_us) const;
  virtual Status measure(const vecina_backward_args& args, int repeats,
                         std::vector<double>* times_us) const;
  virtual Status measure(const SplitArgs& args, int repeats, std::vector<double>* times_us) const;
  virtual std::string describe() const = 0;  // JSON object: kernel, tiles, work, why
  virtual size_t workspace_bytes() const { return 0; }
};

struct MergeArgs {
  int32_t count;
  const vecina_tensor *outputs, *lses;
  const vecina_tensor *output, *lse;
};
struct MergeBackwardArgs {
  int32_t count;
  const vecina_tensor *outputs, *lses;
  const vecina_tensor *grad_output, *grad_lse;    // grad_lse may be not given
  const vecina_tensor *grad_outputs, *grad_lses;  // each wanted if given
};

// Which kernels of a problem are meant.
struct KernelParts {
  bool forward = true, backward = true;
  bool split = false;  // qk, av and their gradients
  bool merge = false;  // of two such attentions, and its gradients
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;
  virtual vecina_device device() const { return VECINA_CPU; }  // where its tensors lie
  // Takes host tensors too, by copying, for those who asked for this backend by name.
  virtual bool stages_host_tensors() const { return false; }
  // What is wrong with the user's settings of it: a sentence, or empty. No context is made then.
  virtual std::string misconfigured() const { return {}; }
  // Why it cannot run at all here, or why not this problem: a sentence, or empty if it can.
  virtual std::string why_not() const { return {}; }
  virtual std::string why_not(const Problem& problem, Pass pass) const = 0;

  virtual Status plan(const Problem& problem, const vecina_forward_args& example,
                      std::unique_ptr<Plan>* plan) = 0;
  virtual Status plan(const Problem& problem, const vecina_backward_args& example,
                      std::unique_ptr<Plan>* plan);
  virtual Status plan(const Problem& problem, const SplitArgs& example,
                      std::unique_ptr<Plan>* plan);
  // UNSUPPORTED if the backend has no merge of this dtype or pass; the next one is asked then.
  virtual Status merge(const MergeArgs& args, void* queue);
  virtual Status merge_backward(const MergeBackwardArgs& args, void* queue);

  // Device memory that a call needs; 0 for backends that work in host memory.
  virtual size_t workspace_bytes(const Problem&, Pass) const { return 0; }

  // Of the kernels that it compiles at run time, as JSON; UNSUPPORTED if it compiles none.
  virtual Status list_kernels(std::string* json) const;   // on disk
  virtual Status clear_kernels(std::string* json) const;  // removes those
  // Compiles those of a problem for a GPU of a compute capability (90: 9.0); 0: the device here.
  virtual Status build_kernels(int compute_capability, const Problem& problem,
                               const KernelParts& parts, std::string* json) const;

  // Measures, on its device, the `count` ways to compute a problem's forward that it thinks fastest
  // and keeps the best for later plans of any process; as JSON. UNSUPPORTED if it has no choice.
  virtual Status tune(const Problem& problem, int count, std::string* json);
  virtual Status clear_tuned(std::string* json) const;  // forgets what was kept

  virtual std::string info() const { return "{}"; }  // JSON object for `vecina info`
  virtual std::string peak() { return "{}"; }        // JSON object; measures, takes a second
};

// Of a backend without e4m3: why it does not take a problem that has it; empty if it has none.
std::string e4m3_why_not(const Problem& problem, Pass pass);

// Resolved options of the context, the same for every backend.
struct BackendOptions {
  int threads = 0;  // the caller included; 0: as many as this process may use
  void (*parallel_for)(void* user, int64_t count, void (*body)(int64_t i, void* user_body),
                       void* user_body) = nullptr;  // the host's own pool
  void* parallel_for_user = nullptr;
  std::string cache_dir;
  int device_index = 0;
};

}  // namespace vecina::internal
#endif  // VECINA_CORE_BACKEND_H_
