// SPDX-License-Identifier: MIT
// Plans that calls were given from the cache: gone with their context, whose threads and caches
// they use, also the one that a thread remembers.
#include "api/context.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace vecina::internal {
namespace {

TEST(CachedPlans, DoNotOutliveTheirContext) {
  vecina_context_options options = {};
  options.struct_size = sizeof(options);
  options.backend = "cpu";
  options.threads = 2;
  std::shared_ptr<Context> context;
  ASSERT_TRUE(Context::make(options, &context).ok());
  Problem problem;
  ASSERT_TRUE(Problem::parse("1d 9 kernel_size 3 head_dim 8", &problem).ok());
  vecina_forward_args args;
  imagine_arguments(problem, VECINA_CPU, &args);
  std::vector<float> memory(4 * 9 * 8);
  float* free = memory.data();
  for (vecina_tensor* tensor : {&args.query, &args.key, &args.value, &args.output}) {
    tensor->data = free;
    free += 9 * 8;
  }
  args.lse = {};
  std::shared_ptr<const PlanRecord> first, second;
  Status status = context->cached_plan(problem.to_c(), args, &first);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_TRUE(context->cached_plan(problem.to_c(), args, &second).ok());
  EXPECT_EQ(first, second);
  context->forget_plans();
  ASSERT_TRUE(context->cached_plan(problem.to_c(), args, &second).ok());
  EXPECT_NE(first, second);
  const std::weak_ptr<const PlanRecord> last = second;
  first.reset();
  second.reset();
  EXPECT_FALSE(last.expired());
  context.reset();
  EXPECT_TRUE(last.expired());
}

}  // namespace
}  // namespace vecina::internal
