// A plan as a JavaScript object.
#pragma once

#include <napi.h>

#include <memory>

#include "../runtime/plan.h"

namespace lean::binding {

class NativePlan : public Napi::ObjectWrap<NativePlan> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<const Plan> plan);

  explicit NativePlan(const Napi::CallbackInfo& info);
  const std::shared_ptr<const Plan>& plan() const { return plan_; }

 private:
  Napi::Value summary(const Napi::CallbackInfo& info);
  Napi::Value segments(const Napi::CallbackInfo& info);

  std::shared_ptr<const Plan> plan_;
};

}  // namespace lean::binding
