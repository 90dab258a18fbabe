#include "plan.h"

#include "environment.h"

namespace lean::binding {

Napi::Function NativePlan::define(Napi::Env env) {
  return DefineClass(
      env, "NativePlan",
      {InstanceMethod<&NativePlan::summary>("summary"), InstanceMethod<&NativePlan::segments>("segments")});
}

Napi::Object NativePlan::create(Napi::Env env, std::shared_ptr<const Plan> plan) {
  return Environment::of(env).plan_class.New({Napi::External<std::shared_ptr<const Plan>>::New(env, &plan)});
}

NativePlan::NativePlan(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "Expected a plan to be made by a device");
  plan_ = *info[0].As<Napi::External<std::shared_ptr<const Plan>>>().Data();
}

Napi::Value NativePlan::summary(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    Napi::Object summary = Napi::Object::New(env);
    const auto set = [&](const char* name, int64_t value) { summary.Set(name, static_cast<double>(value)); };
    set("workers", plan_->request().processors);
    // What the caller asked for: the schedule may hold fewer, where no context has as many tiles.
    set("splits", plan_->request().splits > 0 ? plan_->request().splits : plan_->schedule().num_splits);
    set("tileTokens", plan_->request().tile_tokens);
    set("numTiles", plan_->num_tiles());
    set("makespan", plan_->makespan());
    set("idealMakespan", plan_->ideal_makespan());
    return summary;
  });
}

// Ten numbers a segment, in the order that lib/plan.ts names them.
Napi::Value NativePlan::segments(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::vector<PlacedSegment> placed = plan_->segments();
    Napi::Float64Array flat = Napi::Float64Array::New(info.Env(), placed.size() * 10);
    double* out = flat.Data();
    for (const PlacedSegment& p : placed)
      for (const int64_t value :
           {p.worker, p.processor, p.start, int64_t{p.segment.sequence}, int64_t{p.segment.kv_head}, p.segment.begin,
            p.segment.end, p.segment.output_tiles, p.segment.first_worker, p.segment.num_contributors})
        *out++ = static_cast<double>(value);
    return flat;
  });
}

}  // namespace lean::binding
