-- pktgen.lua SCRIPT: runs a script with a table pktgen that prints how it is called, in place of Pktgen-DPDK's. Its balancer
-- forwards all at up to 40 % and nothing beyond.
local rate, running = 0, false

local function say(name)
	return function(...)
		local words = {}
		for i, v in ipairs({ ... }) do
			if type(v) == "table" then
				local keys = {}
				for k in pairs(v) do
					keys[#keys + 1] = k
				end
				table.sort(keys)
				for j, k in ipairs(keys) do
					keys[j] = k .. "=" .. tostring(v[k])
				end
				v = table.concat(keys, " ")
			end
			words[i] = tostring(v)
		end
		print("pktgen." .. name .. " " .. table.concat(words, " "))
		if name == "set" and words[2] == "rate" then
			rate = tonumber(words[3])
		end
		running = name == "start" or running and name ~= "stop"
	end
end

pktgen = { range = {} }
for _, name in ipairs({ "clr", "set", "start", "stop", "delay", "set_range", "seqTable" }) do
	pktgen[name] = say(name)
end
for _, name in ipairs({ "dst_mac", "src_ip", "dst_ip", "src_port", "dst_port", "pkt_size", "ip_proto" }) do
	pktgen.range[name] = say("range." .. name)
end

function pktgen.portStats(port, _)
	assert(not running, "counted while it still sends")
	local n = math.floor(rate * 1000)
	return { [tonumber(port)] = { opackets = n, ipackets = math.min(n, 40000) } }
end

dofile(arg[1])
