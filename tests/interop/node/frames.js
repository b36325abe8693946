// What zmq-raft makes of frames: `decode` takes [protocol, "request" or "reply", frames] and gives values or an error.
'use strict';

const raft = require('zmq-raft');
const {fromBytes, serve, toBytes} = require('./lines');

const protocols = new Map();

const protocolOf = (name) => {
  if (!protocols.has(name)) protocols.set(name, raft.protocol.createFramesProtocol(name));
  return protocols.get(name);
};

// Bytes and what JSON has no word for are marked, so that they are not taken for strings or null.
const describeValue = (value) => {
  if (Buffer.isBuffer(value)) return {bytes: fromBytes(value)};
  if (value === undefined) return {absent: true};
  if (Array.isArray(value)) return value.map(describeValue);
  if (value !== null && typeof value === 'object') {
    return {map: Object.keys(value).map((key) => [key, describeValue(value[key])])};
  }
  if (typeof value === 'number' && !Number.isFinite(value)) return {number: String(value)};
  return value;
};

serve({
  decode: ({messages}) => messages.map(([name, direction, frames]) => {
    const protocol = protocolOf(name);
    try {
      const buffers = frames.map(toBytes);
      const values = direction === 'request' ? protocol.decodeRequest(buffers) : protocol.decodeResponse(buffers);
      return {values: Array.from(values, describeValue)};
    } catch (error) {
      return {error: `${error.name}: ${error.message}`};
    }
  }),
});
