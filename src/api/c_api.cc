// SPDX-License-Identifier: MIT
// The C interface: structs of any known size in, one status out, nothing thrown.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "api/context.h"
#include "api/info.h"
#include "api/registry.h"
#include "core/arguments.h"
#include "core/log.h"
#include "core/problem.h"
#include "core/status.h"
#include "vecina/vecina.h"

using vecina::internal::invalid;
using vecina::internal::Pass;
using vecina::internal::Problem;
using vecina::internal::Status;

struct vecina_context {
  std::shared_ptr<vecina::internal::Context> context;
};

struct vecina_plan {
  std::shared_ptr<vecina::internal::Context> context;  // keeps the backend alive
  std::shared_ptr<const vecina::internal::PlanRecord> record;
};

namespace {

thread_local std::string last_error;
thread_local vecina_status last_status = VECINA_OK;

vecina_status finish(const Status& status) {
  if (!status.ok()) last_error = status.message();
  last_status = status.code();
  return last_status;
}

// Runs `body`, which returns a Status, and turns what it throws into one.
template <typename Body>
vecina_status guarded(Body body) {
  try {
    return finish(body());
  } catch (const std::bad_alloc&) {
    return finish(vecina::internal::out_of_memory("the host's memory is exhausted."));
  } catch (const std::exception& error) {
    return finish({VECINA_INTERNAL, fmt::format("internal error: {}", error.what())});
  } catch (...) {
    return finish({VECINA_INTERNAL, "internal error."});
  }
}

// Writes text as snprintf does: cut to size, always terminated; returns the full length.
size_t write_text(const std::string& from, char* text, size_t size) {
  if (text != nullptr && size > 0) {
    const size_t count = std::min(from.size(), size - 1);
    std::memcpy(text, from.data(), count);
    text[count] = '\0';
  }
  return from.size();
}

template <typename Body>
size_t guarded_text(char* text, size_t size, Body body) {
  std::string result;
  if (guarded([&] { return body(&result); }) != VECINA_OK) result = last_error;
  return write_text(result, text, size);
}

// Of each struct its name and its first fields, those that version 0.1 began with; a smaller struct
// is a mistake.
struct StructRow {
  const char* name;
  size_t least_size;
};
constexpr StructRow row_of(const vecina_problem*) {
  return {"vecina_problem", offsetof(vecina_problem, additional_tokens)};
}
constexpr StructRow row_of(const vecina_context_options*) {
  return {"vecina_context_options", offsetof(vecina_context_options, device_index)};
}
constexpr StructRow row_of(const vecina_forward_args*) {
  return {"vecina_forward_args", offsetof(vecina_forward_args, lse)};
}
constexpr StructRow row_of(const vecina_backward_args*) {
  return {"vecina_backward_args", offsetof(vecina_backward_args, grad_lse)};
}
constexpr StructRow row_of(const vecina_split_args*) {
  return {"vecina_split_args", offsetof(vecina_split_args, right_aligned)};
}

// A struct as the caller compiled it, shorter or longer, becomes ours: missing fields are zero,
// fields that we do not know must be zero. `storage` is used only if the sizes differ.
template <typename Struct>
Status read_struct(const char* name, const Struct* given, Struct* storage, const Struct** read) {
  if (given == nullptr) return invalid(fmt::format("{} is NULL.", name));
  const size_t size = given->struct_size;
  if (size == sizeof(Struct)) {
    *read = given;
    return {};
  }
  if (size < row_of(given).least_size) {
    return invalid(
        fmt::format("{}->struct_size is {}; set it to sizeof({}), which is {} in version {}.", name,
                    size, row_of(given).name, sizeof(Struct), VECINA_VERSION));
  }
  std::memset(static_cast<void*>(storage), 0, sizeof(Struct));
  std::memcpy(static_cast<void*>(storage), given, std::min(size, sizeof(Struct)));
  const char* bytes = reinterpret_cast<const char*>(given);
  for (size_t i = sizeof(Struct); i < size; ++i) {
    if (bytes[i] != 0) {
      return invalid(fmt::format(
          "{}->struct_size is {}, but version {} knows {} bytes, and one of the others is not 0.",
          name, size, VECINA_VERSION, sizeof(Struct)));
    }
  }
  storage->struct_size = sizeof(Struct);
  *read = storage;
  return {};
}

Status read_problem(const vecina_problem* given, Problem* problem) {
  vecina_problem storage;
  const vecina_problem* read = nullptr;
  VECINA_RETURN_IF_ERROR(read_struct("problem", given, &storage, &read));
  return Problem::make(*read, problem);
}

Status check_context(const vecina_context* context) {
  return context == nullptr ? invalid("context is NULL.") : Status();
}

template <typename Args>
Status make_plan(vecina_context* context, const vecina_problem* problem, const Args* example,
                 vecina_plan** plan) {
  if (plan == nullptr) return invalid("plan is NULL.");
  *plan = nullptr;
  VECINA_RETURN_IF_ERROR(check_context(context));
  Problem checked;
  VECINA_RETURN_IF_ERROR(read_problem(problem, &checked));
  Args storage;
  const Args* read = nullptr;
  VECINA_RETURN_IF_ERROR(read_struct("example", example, &storage, &read));
  auto made = std::make_unique<vecina_plan>();
  made->context = context->context;
  VECINA_RETURN_IF_ERROR(context->context->plan(checked, *read, &made->record));
  *plan = made.release();
  return {};
}

template <typename Args>
Status run_plan(const vecina_plan* plan, vecina::internal::Pass pass, const Args* args,
                void* queue) {
  if (plan == nullptr) return invalid("plan is NULL.");
  if (plan->record->pass != pass) {
    return pass == vecina::internal::Pass::forward
               ? invalid("this plan is for backward; run it with vecina_run_backward.")
               : invalid("this plan is for forward; run it with vecina_run_forward.");
  }
  Args storage;
  const Args* read = nullptr;
  VECINA_RETURN_IF_ERROR(read_struct("args", args, &storage, &read));
  return plan->record->run(*read, queue);
}

// Checks the arguments by a first run, then times by the device's clock where there is one.
template <typename Args>
Status measure_plan(const vecina_plan* plan, const Args* args, int32_t repeats,
                    vecina::internal::PlanTimes* times) {
  const vecina::internal::Pass pass = plan->record->pass;
  VECINA_RETURN_IF_ERROR(run_plan(plan, pass, args, nullptr));
  Args storage;
  const Args* read = nullptr;
  VECINA_RETURN_IF_ERROR(read_struct("args", args, &storage, &read));
  const Status status = plan->record->plan->measure(*read, repeats, &times->times_us);
  if (status.code() != VECINA_UNSUPPORTED) return status;
  times->clock = "host";
  for (int32_t i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    VECINA_RETURN_IF_ERROR(run_plan(plan, pass, args, nullptr));
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
    times->times_us.push_back(time.count());
  }
  return {};
}

template <typename Args>
Status plan_and_run(vecina_context* context, const vecina_problem* problem, const Args* args,
                    void* queue) {
  VECINA_RETURN_IF_ERROR(check_context(context));
  vecina_problem problem_storage;
  const vecina_problem* read_problem = nullptr;
  VECINA_RETURN_IF_ERROR(read_struct("problem", problem, &problem_storage, &read_problem));
  Args storage;
  const Args* read = nullptr;
  VECINA_RETURN_IF_ERROR(read_struct("args", args, &storage, &read));
  std::shared_ptr<const vecina::internal::PlanRecord> record;
  VECINA_RETURN_IF_ERROR(context->context->cached_plan(*read_problem, *read, &record));
  return record->run(*read, queue);
}

Status plan_and_run_split(vecina_context* context, const vecina_problem* problem, Pass pass,
                          const vecina_split_args* args, void* queue) {
  VECINA_RETURN_IF_ERROR(check_context(context));
  vecina_problem problem_storage;
  const vecina_problem* read_problem = nullptr;
  VECINA_RETURN_IF_ERROR(read_struct("problem", problem, &problem_storage, &read_problem));
  vecina_split_args storage;
  const vecina_split_args* read = nullptr;
  VECINA_RETURN_IF_ERROR(read_struct("args", args, &storage, &read));
  const vecina::internal::SplitArgs split = {pass, *read};
  std::shared_ptr<const vecina::internal::PlanRecord> record;
  VECINA_RETURN_IF_ERROR(context->context->cached_plan(*read_problem, split, &record));
  return record->run(split, queue);
}

Status check_not_null(std::initializer_list<std::pair<const char*, const void*>> pointers) {
  for (const auto& [name, pointer] : pointers) {
    if (pointer == nullptr) return invalid(fmt::format("{} is NULL.", name));
  }
  return {};
}

}  // namespace

extern "C" {

const char* vecina_last_error(void) { return last_error.c_str(); }

vecina_status vecina_last_status(void) { return last_status; }

const char* vecina_version(void) { return VECINA_VERSION; }

void vecina_problem_init(vecina_problem* problem, size_t struct_size, int32_t rank) {
  if (problem == nullptr || struct_size < sizeof(size_t)) return;
  vecina_problem full = vecina::internal::default_problem(rank);
  full.struct_size = struct_size;
  const size_t known = std::min(struct_size, sizeof(full));
  std::memcpy(static_cast<void*>(problem), &full, known);
  std::memset(reinterpret_cast<char*>(problem) + known, 0, struct_size - known);
}

vecina_status vecina_problem_check(const vecina_problem* problem) {
  return guarded([&] {
    Problem checked;
    return read_problem(problem, &checked);
  });
}

vecina_status vecina_problem_parse(const char* line, vecina_problem* problem) {
  return guarded([&]() -> Status {
    VECINA_RETURN_IF_ERROR(check_not_null({{"line", line}, {"problem", problem}}));
    const size_t size = problem->struct_size;
    if (size < row_of(problem).least_size) {
      return invalid(
          fmt::format("problem->struct_size is {}; set it to sizeof(vecina_problem), {}.", size,
                      sizeof(vecina_problem)));
    }
    Problem parsed;
    VECINA_RETURN_IF_ERROR(Problem::parse(line, &parsed));
    vecina_problem full = parsed.to_c();
    const size_t known = std::min(size, sizeof(full));
    const char* bytes = reinterpret_cast<const char*>(&full);
    if (std::any_of(bytes + known, bytes + sizeof(full), [](char byte) { return byte != 0; })) {
      return invalid(fmt::format(
          "the line '{}' needs a field beyond the {} bytes of problem->struct_size; compile with "
          "the header of version {}.",
          line, size, VECINA_VERSION));
    }
    full.struct_size = size;
    std::memcpy(static_cast<void*>(problem), &full, known);
    std::memset(reinterpret_cast<char*>(problem) + known, 0, size - known);
    return {};
  });
}

size_t vecina_problem_print(const vecina_problem* problem, char* text, size_t size) {
  return guarded_text(text, size, [&](std::string* result) {
    Problem checked;
    VECINA_RETURN_IF_ERROR(read_problem(problem, &checked));
    *result = checked.line();
    return Status();
  });
}

vecina_status vecina_window(const vecina_problem* problem, int32_t axis, int64_t index,
                            int64_t* begin, int64_t* step, int64_t* count) {
  return guarded([&]() -> Status {
    Problem checked;
    VECINA_RETURN_IF_ERROR(read_problem(problem, &checked));
    VECINA_RETURN_IF_ERROR(check_not_null({{"begin", begin}, {"step", step}, {"count", count}}));
    if (axis < 0 || axis >= checked.rank()) {
      return invalid(
          fmt::format("axis {} is not within 0 and {} (rank - 1).", axis, checked.rank() - 1));
    }
    if (index < 0 || index >= checked.axis(axis).num_queries()) {
      return invalid(fmt::format("index {} is not one of the {} queries of axis {}.", index,
                                 checked.axis(axis).num_queries(), axis));
    }
    const vecina::internal::Window window = vecina::internal::window_of(checked, axis, index);
    *begin = window.begin;
    *step = window.step;
    *count = window.count;
    return {};
  });
}

vecina_status vecina_context_create(const vecina_context_options* options,
                                    vecina_context** context) {
  return guarded([&]() -> Status {
    VECINA_RETURN_IF_ERROR(check_not_null({{"context", context}}));
    *context = nullptr;
    vecina_context_options storage = {};
    const vecina_context_options* read = &storage;
    if (options != nullptr) {
      VECINA_RETURN_IF_ERROR(read_struct("options", options, &storage, &read));
    }
    auto made = std::make_unique<vecina_context>();
    VECINA_RETURN_IF_ERROR(vecina::internal::Context::make(*read, &made->context));
    *context = made.release();
    return {};
  });
}

void vecina_context_destroy(vecina_context* context) { delete context; }

int32_t vecina_backend_count(void) {
  int32_t count = 0;
  for (const vecina::internal::BackendRow& row : vecina::internal::backend_rows())
    count += !row.is_hidden;
  return count;
}

const char* vecina_backend_name(int32_t i) {
  for (const vecina::internal::BackendRow& row : vecina::internal::backend_rows()) {
    if (!row.is_hidden && i-- == 0) return row.name;
  }
  return nullptr;
}

size_t vecina_backend_why_not(vecina_context* context, const char* name,
                              const vecina_problem* problem, char* text, size_t size) {
  return guarded_text(text, size, [&](std::string* result) {
    VECINA_RETURN_IF_ERROR(check_context(context));
    VECINA_RETURN_IF_ERROR(check_not_null({{"name", name}}));
    Problem checked;
    if (problem != nullptr) VECINA_RETURN_IF_ERROR(read_problem(problem, &checked));
    *result = context->context->why_not(name, problem ? &checked : nullptr);
    return Status();
  });
}

vecina_status vecina_plan_forward(vecina_context* context, const vecina_problem* problem,
                                  const vecina_forward_args* example, vecina_plan** plan) {
  return guarded([&] { return make_plan(context, problem, example, plan); });
}

vecina_status vecina_plan_backward(vecina_context* context, const vecina_problem* problem,
                                   const vecina_backward_args* example, vecina_plan** plan) {
  return guarded([&] { return make_plan(context, problem, example, plan); });
}

size_t vecina_plan_workspace_bytes(const vecina_plan* plan) {
  size_t bytes = 0;
  guarded([&]() -> Status {
    VECINA_RETURN_IF_ERROR(check_not_null({{"plan", plan}}));
    bytes = plan->record->plan->workspace_bytes();
    return {};
  });
  return bytes;
}

size_t vecina_plan_describe(const vecina_plan* plan, char* text, size_t size) {
  return guarded_text(text, size, [&](std::string* result) {
    VECINA_RETURN_IF_ERROR(check_not_null({{"plan", plan}}));
    *result = vecina::internal::describe_plan(*plan->record);
    return Status();
  });
}

void vecina_plan_destroy(vecina_plan* plan) { delete plan; }

vecina_status vecina_run_forward(const vecina_plan* plan, const vecina_forward_args* args,
                                 void* queue) {
  return guarded([&] { return run_plan(plan, vecina::internal::Pass::forward, args, queue); });
}

vecina_status vecina_run_backward(const vecina_plan* plan, const vecina_backward_args* args,
                                  void* queue) {
  return guarded([&] { return run_plan(plan, vecina::internal::Pass::backward, args, queue); });
}

size_t vecina_workspace_bytes(vecina_context* context, const vecina_problem* problem,
                              int32_t backward) {
  size_t bytes = 0;
  guarded([&]() -> Status {
    VECINA_RETURN_IF_ERROR(check_context(context));
    Problem checked;
    VECINA_RETURN_IF_ERROR(read_problem(problem, &checked));
    return context->context->workspace_bytes(
        checked, backward ? vecina::internal::Pass::backward : vecina::internal::Pass::forward,
        &bytes);
  });
  return bytes;
}

vecina_status vecina_forward(vecina_context* context, const vecina_problem* problem,
                             const vecina_forward_args* args, void* queue) {
  return guarded([&] { return plan_and_run(context, problem, args, queue); });
}

vecina_status vecina_backward(vecina_context* context, const vecina_problem* problem,
                              const vecina_backward_args* args, void* queue) {
  return guarded([&] { return plan_and_run(context, problem, args, queue); });
}

vecina_status vecina_merge_attentions(vecina_context* context, int32_t count,
                                      const vecina_tensor* outputs, const vecina_tensor* lses,
                                      const vecina_tensor* output, const vecina_tensor* lse,
                                      void* queue) {
  return guarded([&]() -> Status {
    VECINA_RETURN_IF_ERROR(check_context(context));
    VECINA_RETURN_IF_ERROR(
        check_not_null({{"outputs", outputs}, {"lses", lses}, {"output", output}}));
    static constexpr vecina_tensor kNotGiven = {};
    if (lse == nullptr) lse = &kNotGiven;
    VECINA_RETURN_IF_ERROR(vecina::internal::check_merge(count, outputs, lses, *output, *lse));
    return context->context->merge({count, outputs, lses, output, lse}, queue);
  });
}

vecina_status vecina_merge_attentions_backward(
    vecina_context* context, int32_t count, const vecina_tensor* outputs, const vecina_tensor* lses,
    const vecina_tensor* grad_output, const vecina_tensor* grad_lse,
    const vecina_tensor* grad_outputs, const vecina_tensor* grad_lses, void* queue) {
  return guarded([&]() -> Status {
    VECINA_RETURN_IF_ERROR(check_context(context));
    VECINA_RETURN_IF_ERROR(check_not_null({{"outputs", outputs},
                                           {"lses", lses},
                                           {"grad_output", grad_output},
                                           {"grad_outputs", grad_outputs},
                                           {"grad_lses", grad_lses}}));
    static constexpr vecina_tensor kNotGiven = {};
    if (grad_lse == nullptr) grad_lse = &kNotGiven;
    VECINA_RETURN_IF_ERROR(vecina::internal::check_merge_backward(
        count, outputs, lses, *grad_output, *grad_lse, grad_outputs, grad_lses));
    return context->context->merge_backward(
        {count, outputs, lses, grad_output, grad_lse, grad_outputs, grad_lses}, queue);
  });
}

vecina_status vecina_qk(vecina_context* context, const vecina_problem* problem,
                        const vecina_split_args* args, void* queue) {
  return guarded([&] { return plan_and_run_split(context, problem, Pass::qk, args, queue); });
}

vecina_status vecina_av(vecina_context* context, const vecina_problem* problem,
                        const vecina_split_args* args, void* queue) {
  return guarded([&] { return plan_and_run_split(context, problem, Pass::av, args, queue); });
}

vecina_status vecina_qk_backward(vecina_context* context, const vecina_problem* problem,
                                 const vecina_split_args* args, void* queue) {
  return guarded(
      [&] { return plan_and_run_split(context, problem, Pass::qk_backward, args, queue); });
}

vecina_status vecina_av_backward(vecina_context* context, const vecina_problem* problem,
                                 const vecina_split_args* args, void* queue) {
  return guarded(
      [&] { return plan_and_run_split(context, problem, Pass::av_backward, args, queue); });
}

size_t vecina_info(vecina_context* context, const char* what, char* text, size_t size) {
  return guarded_text(text, size, [&](std::string* result) {
    VECINA_RETURN_IF_ERROR(check_context(context));
    VECINA_RETURN_IF_ERROR(check_not_null({{"what", what}}));
    return vecina::internal::read_info(*context->context, what, result);
  });
}

size_t vecina_profile(const vecina_plan* plan, const void* args, int32_t repeats, char* text,
                      size_t size) {
  return guarded_text(text, size, [&](std::string* result) -> Status {
    VECINA_RETURN_IF_ERROR(check_not_null({{"plan", plan}, {"args", args}}));
    if (repeats < 1) return invalid(fmt::format("repeats {} is less than 1.", repeats));
    vecina::internal::PlanTimes times;
    VECINA_RETURN_IF_ERROR(
        plan->record->pass == vecina::internal::Pass::forward
            ? measure_plan(plan, static_cast<const vecina_forward_args*>(args), repeats, &times)
            : measure_plan(plan, static_cast<const vecina_backward_args*>(args), repeats, &times));
    *result = vecina::internal::describe_profile(*plan->record, times);
    return Status();
  });
}

void vecina_set_log(void (*log)(void* user, int32_t severity, const char* line), void* user) {
  vecina::internal::set_log(log, user);
}

}  // extern "C"
