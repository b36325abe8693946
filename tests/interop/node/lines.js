// JSON lines, and the values in them: a request {call, op, ...} gets {call, value} or {call, error: {name, message}};
// what comes unasked is {event, ...}. Bytes are base64, request ids 24 hex digits. The end of standard input ends all.
'use strict';

const readline = require('readline');
const {common: {LogEntry, SnapshotChunk}, utils: {id: {genIdent}}} = require('zmq-raft');

const tell = (object) => process.stdout.write(JSON.stringify(object) + '\n');

exports.tell = tell;

exports.serve = (operations, end = () => process.exit(0)) => {
  readline.createInterface({input: process.stdin}).on('line', async (line) => {
    const {call, op, ...parameters} = JSON.parse(line);
    try {
      tell({call, value: await operations[op](parameters)});
    } catch (error) {
      tell({call, error: {name: error.name, message: error.message}});
    }
  }).on('close', end);
};

const fromBytes = (buffer) => Buffer.from(buffer).toString('base64');

exports.toBytes = (text) => Buffer.from(text, 'base64');

exports.fromBytes = fromBytes;

// A log entry, as zmq-raft itself reads its fields.
const {readTypeOf, readTermOf, readRequestIdOf, readDataOf} = LogEntry.readers;

const describeEntry = (entry, index) => ({
  index,
  term: readTermOf(entry),
  type: readTypeOf(entry),
  id: readRequestIdOf(entry, 'hex'),
  data: fromBytes(readDataOf(entry)),
});

exports.describeEntry = describeEntry;

// What streams yield: an entry, or a chunk of the snapshot that stands for those before.
exports.describeItem = (item) => SnapshotChunk.isSnapshotChunk(item)
  ? {
    index: item.logIndex,
    term: item.logTerm,
    offset: item.snapshotByteOffset,
    size: item.snapshotTotalLength,
    chunk: fromBytes(item),
  }
  : describeEntry(item, item.logIndex);

exports.newRequestId = () => genIdent();
