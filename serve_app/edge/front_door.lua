-- Puts a request under the prefix of the application that serves its model.
--
-- The table comes from the front door, through this HAProxy, once a second: a line per model and
-- application, `<sha256 of the name> <weight> <prefix>`. While the front door does not answer, the
-- last table stands. What the table lacks goes to the front door.

local URL = "http://127.0.0.1:" .. os.getenv("NEURON_SERVE_PORT") .. "/-/front-door/table"
local PERIOD_S, NONE_PERIOD_S, TIMEOUT_MS = 1, 10, 2000
local targets, last = {}, nil

local function read(text)
  local found = {}
  for digest, weight, prefix in text:gmatch("(%x+) ([%d.]+) (%S+)\n") do
    local choices = found[digest] or { total = 0 }
    choices.total = choices.total + tonumber(weight)
    choices[#choices + 1] = { upto = choices.total, prefix = prefix }
    found[digest] = choices
  end
  return found
end

core.register_task(function()
  while true do
    local pause = PERIOD_S
    local ok, answer = pcall(function()
      return core.httpclient():get { url = URL, timeout = TIMEOUT_MS }
    end)
    if ok and answer.status == 200 then
      if answer.body ~= last then
        targets, last = read(answer.body or ""), answer.body
      end
    elseif ok and answer.status == 404 then
      targets, last, pause = {}, nil, NONE_PERIOD_S -- no front door; a new one comes with a reload
    end
    core.sleep(pause)
  end
end)

core.register_action("front_door", { "http-req" }, function(txn)
  local choices = targets[txn:get_var("txn.model")]
  if choices == nil then
    return
  end
  local draw = #choices > 1 and math.random() * choices.total or 0
  for _, choice in ipairs(choices) do
    if draw < choice.upto then
      txn:set_var("txn.front_door", 1)
      txn.http:req_set_path(choice.prefix .. txn.sf:path())
      return
    end
  end
end, 0)
