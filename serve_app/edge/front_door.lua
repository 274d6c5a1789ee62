-- Puts a request under the prefix of the application that serves its model.
--
-- The table comes from the front door, through this HAProxy, once a second: a line per model and
-- application, `<sha256 of the name> <weight> <prefix>`. While the front door does not answer, the
-- last table stands. What the table lacks goes to the front door.
--
-- Each argument, `<prefix>=<backend>`, is from HAProxy's file. Of the applications that serve one
-- model, only those count whose backend has a replica up here: the table may know of one sooner.

local URL = "http://127.0.0.1:" .. os.getenv("NEURON_SERVE_PORT") .. "/-/front-door/table"
local PERIOD_S, NONE_PERIOD_S, TIMEOUT_MS = 1, 10, 2000
local targets, last = {}, nil
local backends = {}
for _, argument in ipairs(table.pack(...)) do
  local prefix, backend = argument:match("^(.-)=(.+)$")
  backends[prefix] = backend
end

local function read(text)
  local found = {}
  for digest, weight, prefix in text:gmatch("(%x+) ([%d.]+) (%S+)\n") do
    local choices = found[digest] or {}
    choices[#choices + 1] = { weight = tonumber(weight), prefix = prefix }
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

local function is_up(prefix)
  local backend = core.backends[backends[prefix] or ""]
  return backend ~= nil and backend:get_srv_act() > 0
end

local function choose(choices)
  local chosen, total = choices[1], 0
  for _, choice in ipairs(#choices > 1 and choices or {}) do
    if is_up(choice.prefix) then
      total = total + choice.weight
      if math.random() * total < choice.weight then
        chosen = choice
      end
    end
  end
  return chosen
end

core.register_action("front_door", { "http-req" }, function(txn)
  local choices = targets[txn:get_var("txn.model")]
  if choices ~= nil then
    txn:set_var("txn.front_door", 1)
    txn.http:req_set_path(choose(choices).prefix .. txn.sf:path())
  end
end, 0)
