// Data directories and state files: one log, or one state file, is open at a time.
'use strict';

const path = require('path');
const raft = require('zmq-raft');
const {describeEntry, fromBytes, serve, toBytes} = require('./lines');

let log = null;
let state = null;

const describe = () => ({
  firstIndex: log.firstIndex,
  lastIndex: log.lastIndex,
  lastTerm: log.lastTerm,
  snapshot: {index: log.snapshot.logIndex, term: log.snapshot.logTerm, size: log.snapshot.dataSize},
});

const describeState = () => ({
  currentTerm: state.currentTerm,
  votedFor: state.votedFor,
  peers: state.peers,
  peersUpdateRequest: state.peersUpdateRequest,
  peersIndex: state.peersIndex,
});

const readSnapshot = async () => {
  const {snapshot} = log;
  const chunks = [];
  if (snapshot.dataSize > 0) for await (const chunk of snapshot.createDataReadStream()) chunks.push(chunk);
  return Buffer.concat(chunks);
};

serve({
  openLog: async ({directory, options}) => {
    log = new raft.server.FileLog(path.join(directory, 'log'), path.join(directory, 'snap'), options);
    await log.ready();
    return describe();
  },

  describe,

  closeLog: () => log.close(),

  entries: async () => {
    const {firstIndex, lastIndex} = log;
    const entries = firstIndex > lastIndex ? [] : await log.getEntries(firstIndex, lastIndex);
    return entries.map((entry, position) => describeEntry(entry, firstIndex + position));
  },

  snapshotData: async () => fromBytes(await readSnapshot()),

  // From `index` on, over what was there.
  append: async ({entries, index}) => {
    await log.appendEntries(entries.map(toBytes), index);
    return describe();
  },

  find: ({id}) => log.getRid(Buffer.from(id, 'hex')),

  // A snapshot that takes the place of entries of the log, or of all of it.
  install: async ({index, term, data, compaction}) => {
    const content = toBytes(data);
    const snapshot = log.createTmpSnapshot(index, compaction ? await log.termAt(index) : term, content.length);
    await snapshot.ready();
    await snapshot.write(content, 0, content.length, 0);
    await log.installSnapshot(snapshot, compaction);
    return describe();
  },

  openState: async ({file, peers}) => {
    state = new raft.server.RaftPersistence(file, peers);
    await state.ready();
    return describeState();
  },

  updateState: async ({changes}) => {
    await state.update(changes);
    return describeState();
  },

  closeState: () => state.close(),
});
