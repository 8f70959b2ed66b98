/** Playback position of each video in this tab, in seconds. */

const name = (id) => `helios-position-${id}`;

export const positionOf = (id) => Number(sessionStorage.getItem(name(id))) || 0;
export const keepPosition = (id, seconds) => sessionStorage.setItem(name(id), seconds.toFixed(2));
export const forgetPosition = (id) => sessionStorage.removeItem(name(id));
