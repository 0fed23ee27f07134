// SPDX-License-Identifier: MIT
#include "api/context.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string_view>
#include <type_traits>

#include "api/registry.h"
#include "core/arguments.h"
#include "core/log.h"
#include "core/tensor.h"

namespace vecina::internal {
namespace {

constexpr size_t kMaxCachedPlans = 512;  // then the cache starts anew; a plan takes a few kB

uint64_t next_context_id() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string backend_names() {
  std::string names;
  for (const BackendRow& row : backend_rows()) {
    if (!row.is_hidden) names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  return names;
}

// Why a backend cannot run here on tensors of a device; empty if it can. `asked_for`: the backend
// that the user named.
std::string why_not_on(const Backend& backend, int32_t device, const std::string& asked_for) {
  constexpr const char* kDevices[] = {"host memory", "CUDA memory", "Vulkan buffers",
                                      "Metal buffers"};
  const std::string why = backend.why_not();
  if (!why.empty() || backend.device() == device) return why;
  if (device == VECINA_CPU && backend.stages_host_tensors() && asked_for == backend.name()) {
    return {};
  }
  return fmt::format("takes tensors in {}, not {}", kDevices[backend.device()], kDevices[device]);
}

Status read_threads(int32_t option, int* threads) {
  constexpr int kMost = 4096;
  *threads = option;
  const std::string text = environment("VECINA_NUM_THREADS");
  if (option == 0 && !text.empty()) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *threads);
    if (error != std::errc() || end != text.data() + text.size() || *threads < 1 ||
        *threads > kMost) {
      return invalid(
          fmt::format("VECINA_NUM_THREADS is '{}'; a number within 1 and {}.", text, kMost));
    }
  }
  if (*threads < 0 || *threads > kMost) {
    return invalid(
        fmt::format("threads {} is not within 0 (as many as there are) and {}.", *threads, kMost));
  }
  return {};
}

constexpr Pass pass_of(const vecina_forward_args&) { return Pass::forward; }
constexpr Pass pass_of(const vecina_backward_args&) { return Pass::backward; }
constexpr Pass pass_of(const SplitArgs& args) { return args.pass; }

// What a call says besides problem and tensors.
constexpr int64_t options_of(const vecina_forward_args&) { return 0; }
constexpr int64_t options_of(const vecina_backward_args&) { return 0; }
constexpr int64_t options_of(const SplitArgs& args) {
  return int64_t{args.c.right_aligned} | int64_t{args.c.reserved} << 32;
}

constexpr size_t kProblemWords = sizeof(vecina_problem) / sizeof(int64_t);
constexpr int kMaxDims = std::extent_v<decltype(vecina_tensor::shape)>;
constexpr size_t kMaxKeyWords = 3 + kProblemWords + kMaxTensors * size_t{3 + 2 * kMaxDims};

int64_t pair_of(int32_t low, int32_t high) {
  return static_cast<int64_t>(static_cast<uint32_t>(low) | uint64_t{static_cast<uint32_t>(high)}
                                                               << 32);
}

// All that a plan depends on: the problem and, of each tensor, everything but the address. Returns
// how many words it takes.
template <typename Args>
size_t write_key(uint64_t context, const vecina_problem& problem, const Args& args,
                 int64_t (&words)[kMaxKeyWords]) {
  static_assert(sizeof(problem) % sizeof(int64_t) == 0);
  NamedTensor list[kMaxTensors];
  const int count = list_tensors(args, list);
  int64_t* at = words;
  *at++ = static_cast<int64_t>(context);
  *at++ = static_cast<int64_t>(pass_of(args));
  *at++ = options_of(args);
  std::memcpy(at, &problem, sizeof(problem));
  at += kProblemWords;
  for (int i = 0; i < count; ++i) {
    const vecina_tensor& tensor = *list[i].tensor;
    if (!given(tensor) && tensor.ndim == 0) {
      *at++ = -1;
      continue;
    }
    const int32_t is_aligned = reinterpret_cast<uintptr_t>(address(tensor)) % 16 == 0 ? 1 : 0;
    *at++ = pair_of(tensor.ndim, tensor.dtype);
    *at++ = pair_of(tensor.device, tensor.device_index);
    *at++ = pair_of(given(tensor) ? 1 : 0, is_aligned);
    const int ndim = tensor.ndim < 0 || tensor.ndim > kMaxDims ? 0 : tensor.ndim;
    at = std::copy_n(tensor.shape, ndim, at);
    at = std::copy_n(tensor.strides, ndim, at);
  }
  return static_cast<size_t>(at - words);
}

void set_example(const vecina_forward_args& args, PlanRecord* record) {
  record->pass = Pass::forward;
  record->forward_example = args;
}
void set_example(const vecina_backward_args& args, PlanRecord* record) {
  record->pass = Pass::backward;
  record->backward_example = args;
}
void set_example(const SplitArgs& args, PlanRecord* record) {
  record->pass = args.pass;
  record->split_example = args;
}

}  // namespace

Status PlanRecord::run(const vecina_forward_args& args, void* queue) const {
  VECINA_RETURN_IF_ERROR(check_run(problem, forward_example, args));
  VECINA_RETURN_IF_ERROR(
      check_workspace(plan->workspace_bytes(), args.workspace, args.workspace_bytes));
  return plan->run(args, queue);
}

Status PlanRecord::run(const vecina_backward_args& args, void* queue) const {
  VECINA_RETURN_IF_ERROR(check_run(problem, backward_example, args));
  VECINA_RETURN_IF_ERROR(
      check_workspace(plan->workspace_bytes(), args.workspace, args.workspace_bytes));
  return plan->run(args, queue);
}

Status PlanRecord::run(const SplitArgs& args, void* queue) const {
  VECINA_RETURN_IF_ERROR(check_run(problem, split_example, args));
  return plan->run(args, queue);
}

size_t Context::KeyHash::operator()(const Key& key) const {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const int64_t word : key) hash = (hash ^ static_cast<uint64_t>(word)) * 0x100000001b3u;
  return static_cast<size_t>(hash ^ (hash >> 32));
}

Context::Context(const BackendOptions& options) : id_(next_context_id()) {
  for (const BackendRow& row : backend_rows()) backends_.push_back(row.make(options));
}

Status Context::make(const vecina_context_options& options, std::shared_ptr<Context>* context) {
  BackendOptions resolved;
  VECINA_RETURN_IF_ERROR(read_threads(options.threads, &resolved.threads));
  if (const std::string wrong = wrong_log_areas(); !wrong.empty()) return invalid(wrong);
  resolved.parallel_for = options.parallel_for;
  resolved.parallel_for_user = options.parallel_for_user;
  resolved.cache_dir = options.cache_dir ? options.cache_dir : environment("VECINA_CACHE_DIR");
  resolved.device_index = options.device_index;

  auto made = std::shared_ptr<Context>(new Context(resolved));
  for (const auto& backend : made->backends_) {
    const std::string sentence = backend->misconfigured();
    if (!sentence.empty()) return invalid(sentence);
  }
  made->backend_ = options.backend ? options.backend : environment("VECINA_BACKEND");
  if (!made->backend_.empty()) {
    const std::string why = made->why_not(made->backend_, nullptr);
    if (!why.empty()) {
      return invalid(fmt::format("backend '{}': {}", made->backend_, why));
    }
  }
  *context = std::move(made);
  return {};
}

std::string Context::why_not(const std::string& name, const Problem* problem) const {
  for (const auto& backend : backends_) {
    if (name != backend->name()) continue;
    std::string why = backend->why_not();
    if (why.empty() && problem != nullptr) why = backend->why_not(*problem, Pass::forward);
    return why;
  }
  return fmt::format("there is no backend of this name; known are {}.", backend_names());
}

Status Context::choose(const Problem& problem, Pass pass, int32_t device, Backend** chosen) const {
  std::string sentences;
  for (const auto& backend : backends_) {
    std::string why = why_not_on(*backend, device, backend_);
    if (why.empty()) why = backend->why_not(problem, pass);
    const bool may_be_used =
        backend_.empty() ? !is_hidden(backend->name()) : backend_ == backend->name();
    if (may_be_used && why.empty()) {
      *chosen = backend.get();
      return {};
    }
    if (is_hidden(backend->name()) && backend_ != backend->name()) continue;
    sentences += fmt::format("{}{}: {}", sentences.empty() ? "" : "; ", backend->name(),
                             why.empty() ? "can, but this context was made for another" : why);
  }
  return unsupported(fmt::format(
      "{} this {}problem ({}): {}.",
      backend_.empty() ? "no backend takes" : "backend '" + backend_ + "' does not take",
      pass_words(pass), problem.line(), sentences));
}

template <typename Args>
Status Context::make_plan(const Problem& problem, const Args& example,
                          std::shared_ptr<const PlanRecord>* record) {
  VECINA_RETURN_IF_ERROR(check_arguments(problem, example));
  Backend* backend = nullptr;
  VECINA_RETURN_IF_ERROR(choose(problem, pass_of(example), first_tensor(example).device, &backend));
  auto made = std::make_shared<PlanRecord>();
  made->problem = problem;
  made->backend = backend->name();
  made->device = backend->device();
  set_example(example, made.get());
  VECINA_RETURN_IF_ERROR(backend->plan(problem, example, &made->plan));
  if (is_logged("plan")) {
    log_line("plan", 0, fmt::format("{} takes {}", backend->name(), problem.line()));
  }
  *record = std::move(made);
  return {};
}

Status Context::plan(const Problem& problem, const vecina_forward_args& example,
                     std::shared_ptr<const PlanRecord>* record) {
  return make_plan(problem, example, record);
}
Status Context::plan(const Problem& problem, const vecina_backward_args& example,
                     std::shared_ptr<const PlanRecord>* record) {
  return make_plan(problem, example, record);
}

template <typename Args>
Status Context::find_plan(const vecina_problem& problem, const Args& args,
                          std::shared_ptr<const PlanRecord>* record) {
  // Plans hold threads, scratch and caches of their context, so the last one must not outlive it
  // here: it is the cache's, and the id in the key is no other context's.
  struct Last {
    Key key, wanted;
    std::weak_ptr<const PlanRecord> record;
  };
  thread_local Last last_of_thread;
  Last& last = last_of_thread;
  int64_t words[kMaxKeyWords];
  const size_t size = write_key(id_, problem, args, words);
  if (std::equal(words, words + size, last.key.begin(), last.key.end())) {
    *record = last.record.lock();
    if (*record != nullptr) return {};
  }
  last.wanted.assign(words, words + size);
  record->reset();
  {
    const std::shared_lock lock(mutex_);
    const auto found = plans_.find(last.wanted);
    if (found != plans_.end()) *record = found->second;
  }
  if (*record == nullptr) {
    Problem checked;
    VECINA_RETURN_IF_ERROR(Problem::make(problem, &checked));
    VECINA_RETURN_IF_ERROR(make_plan(checked, args, record));
    const std::unique_lock lock(mutex_);
    if (plans_.size() >= kMaxCachedPlans) plans_.clear();
    plans_.emplace(last.wanted, *record);
  }
  last.key.swap(last.wanted);
  last.record = *record;
  return {};
}

Status Context::cached_plan(const vecina_problem& problem, const vecina_forward_args& args,
                            std::shared_ptr<const PlanRecord>* record) {
  return find_plan(problem, args, record);
}
Status Context::cached_plan(const vecina_problem& problem, const vecina_backward_args& args,
                            std::shared_ptr<const PlanRecord>* record) {
  return find_plan(problem, args, record);
}

Status Context::cached_plan(const vecina_problem& problem, const SplitArgs& args,
                            std::shared_ptr<const PlanRecord>* record) {
  return find_plan(problem, args, record);
}

void Context::forget_plans() {
  id_ = next_context_id();
  const std::unique_lock lock(mutex_);
  plans_.clear();
}

Status Context::first_that_can(const char* what, int32_t device,
                               const std::function<Status(Backend&)>& attempt) {
  std::string sentences;
  for (const auto& backend : backends_) {
    if (backend_.empty() ? is_hidden(backend->name()) : backend_ != backend->name()) continue;
    std::string why = why_not_on(*backend, device, backend_);
    if (why.empty()) {
      Status status = attempt(*backend);
      if (status.code() != VECINA_UNSUPPORTED) return status;
      why = status.message();
    }
    sentences += fmt::format("{}{}: {}", sentences.empty() ? "" : "; ", backend->name(), why);
  }
  return unsupported(fmt::format("no backend takes this {}: {}.", what, sentences));
}

Status Context::merge(const MergeArgs& args, void* queue) {
  return first_that_can("merge", args.outputs[0].device,
                        [&](Backend& backend) { return backend.merge(args, queue); });
}

Status Context::merge_backward(const MergeBackwardArgs& args, void* queue) {
  return first_that_can("backward of a merge", args.outputs[0].device,
                        [&](Backend& backend) { return backend.merge_backward(args, queue); });
}

Status Context::workspace_bytes(const Problem& problem, Pass pass, size_t* bytes) const {
  *bytes = 0;
  for (const auto& backend : backends_) {
    const bool may_be_used =
        backend_.empty() ? !is_hidden(backend->name()) : backend_ == backend->name();
    if (may_be_used && backend->why_not().empty() && backend->why_not(problem, pass).empty()) {
      *bytes = std::max(*bytes, backend->workspace_bytes(problem, pass));
    }
  }
  return {};
}

}  // namespace vecina::internal
