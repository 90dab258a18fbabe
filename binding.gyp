{
  # CMakeLists.txt describes the build; this runs the same script, so that `node-gyp rebuild` works too.
  "targets": [
    {
      "target_name": "lean_attention",
      "type": "none",
      "actions": [
        {
          "action_name": "build",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["build/Release/lean_attention.node"],
          "action": ["node", "scripts/build.cjs"]
        }
      ]
    }
  ]
}
